"""What a stage says while it works: one line at its start, and a bar where there is a terminal."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Never

from tqdm import tqdm

MEASURED_SECONDS = 2.0
"""How long the first steps are timed before a duration is named."""
MEASURED_STEPS = 3
"""How many there are at least: the first, which is slower, is not counted."""


class Progress:
    """One line that says what, on which device and about how long; then a bar, on a terminal.

    The line is begun at once and completed when the first steps have been timed. Steps may be
    reported from several threads.

        bar = Progress("condense: order 1", 100, "iteration", "CPU, 2 threads")
        for iteration in bar.over(range(100)):
            ...
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        device: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin the line.

        Args:
            what: The stage, and what it does.
            total: The number of steps.
            unit: What a step is, for the bar.
            device: Where it runs, for people.
            clock: Returns seconds.
        """
        self._total, self._unit, self._clock = total, unit, clock
        self._done = 0
        self._start = self._first = clock()
        self._bar: tqdm[Never] | None = None
        self._lock = threading.Lock()
        print(f"{what}; {device}", end="", flush=True)

    def __enter__(self) -> "Progress":
        """Nothing more to begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the line or the bar."""
        if self._bar is None:
            print(flush=True)
        else:
            self._bar.close()

    def over(self, steps: Iterable[int]) -> Iterator[int]:
        """Yield the steps, and report each when its turn is over."""
        with self:
            for step in steps:
                yield step
                self.update()

    def show(self, **values: str) -> None:
        """Show `name=value` beside the bar, on a terminal."""
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)

    def update(self) -> None:
        """Report that a step is done."""
        with self._lock:
            self._done += 1
            if self._bar is not None:
                self._bar.update()
                return
            now = self._clock()
            if self._done == 1:
                self._first = now
            if self._done >= MEASURED_STEPS and now - self._start >= MEASURED_SECONDS:
                left = self._total - self._done
                seconds = now - self._start + left * (now - self._first) / (self._done - 1)
                print(f"; about {duration(seconds)}", flush=True)
                self._bar = tqdm(
                    total=self._total,
                    initial=self._done,
                    unit=self._unit,
                    disable=None,  # off where the output is not a terminal
                )


def duration(seconds: float) -> str:
    """Say roughly how long: `35 s`, `3 min`, `1.5 h`."""
    if seconds < 100:
        return f"{max(1, round(seconds / 5) * 5 if seconds > 10 else round(seconds))} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
