"""What a stage says: one line, with a duration from the first steps; a bar only on a terminal."""

import sys
import time
from collections.abc import Iterator

import pytest

from condensation import progress
from condensation.progress import Progress, duration


def ticking(seconds: list[float]) -> Iterator[float]:
    """Yield the time at the start and after each step."""
    now = 0.0
    yield now
    for step in seconds:
        now += step
        yield now


def test_the_duration_is_that_of_the_steps_after_the_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """10 s for the first step, then 1 s each: 10 + 99 s."""
    clock = ticking([10.0] + [1.0] * 99)
    bar = Progress("condense: order 1", 100, "step", "CPU", clock=lambda: next(clock))
    assert capsys.readouterr().out == "condense: order 1; CPU"  # what it does is said at once
    for step in bar.over(range(100)):
        bar.show(loss="1")
        if step == 3:
            assert capsys.readouterr().out == "; about 2 min\n"
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""  # no bar: this is not a terminal


def test_a_short_stage_names_no_duration(capsys: pytest.CaptureFixture[str]) -> None:
    clock = ticking([0.1] * 5)
    for _ in Progress("evaluate", 5, "step", "CPU", clock=lambda: next(clock)).over(range(5)):
        pass
    assert capsys.readouterr().out == "evaluate; CPU\n"


def test_an_error_ends_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="lost"):
        with Progress("condense", 5, "step", "CPU"):
            raise ValueError("lost")
    assert capsys.readouterr().out == "condense; CPU\n"


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    clock = ticking([1.0] * 20)
    for _ in Progress("condense", 20, "step", "CPU", clock=lambda: next(clock)).over(range(20)):
        pass
    captured = capsys.readouterr()
    assert captured.out == "condense; CPU; about 20 s\n"
    assert "20/20" in captured.err and "100%" in captured.err


def test_a_bar_costs_next_to_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an iteration, which takes milliseconds at least."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "MEASURED_SECONDS", 0.0)
    bar = Progress("condense", 20_000, "step", "CPU")
    start = time.process_time()
    for _ in bar.over(range(20_000)):
        bar.show(loss="1.0")
    seconds = time.process_time() - start
    assert "20000/20000" in capsys.readouterr().err
    assert seconds < 2  # 100 microseconds each; measured: 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.2, "1 s"), (7.4, "7 s"), (33, "35 s"), (99, "100 s")),
        *((101, "2 min"), (3000, "50 min"), (7200, "2.0 h")),
    ],
)
def test_durations_are_rounded(seconds: float, text: str) -> None:
    assert duration(seconds) == text
