"""SIGINT and SIGTERM as a request that the work looks at after each step."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(SystemExit):
    """The stage was asked to stop; the exit status is the one that shells give the signal."""

    def __init__(self, number: int) -> None:
        """Take the signal's number."""
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


class Interruption:
    """Notes the first SIGINT or SIGTERM; a second one acts at once, as if there were no notice.

    Attributes:
        number: Of the signal that came; None before it.
    """

    def __init__(self) -> None:
        """Listen to nothing yet."""
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def listen(self) -> None:
        """Begin to listen, which only the main thread can; signals that are ignored stay so."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)

    def ignore(self) -> None:
        """Leave signals to whoever had them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def check(self) -> None:
        """Stop if that was asked for.

        Raises:
            Interrupted: A signal came.
        """
        if self.number is not None:
            raise Interrupted(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.ignore()
