"""Unfinished work on disk, so that a stage that was interrupted goes on when it is run again.

`.checkpoints/<stage>-<fingerprint>-<slot>/` holds one file for each piece of the work. The
fingerprint is of everything that determines the result, so that work is only ever continued with
the settings, inputs and code that it was begun with. The folder is no output: DVC would delete a
declared one before it runs the stage. Each process locks its folder, and the next one with the same
fingerprint takes the next slot; the system takes the lock from a process that dies.
"""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from condensation.files import write_at_once
from condensation.interruption import Interrupted, Interruption
from condensation.states import State, decode_state, encode_state

if sys.platform != "win32":
    import fcntl

Value = TypeVar("Value")

FOLDER = ".checkpoints"
SECONDS = 60.0
"""Between two writes of one piece; the environment variable CHECKPOINT_SECONDS changes it."""

KEPT_SECONDS = 30 * 24 * 3600
"""What nobody has gone on with for so long is removed."""


class Checkpoint:
    """One piece of the work: the last state that was written of it."""

    def __init__(
        self,
        path: Path | None,
        interruption: Interruption,
        stage: str,
        agree: Callable[[int], int] = int,
    ) -> None:
        """Use a file, which need not exist; without one, nothing is kept.

        Several processes at one piece of work `agree` on one wish: the number of a signal to stop,
        0 to write, -1 to go on; the largest.
        """
        self._path = path
        self._interruption = interruption
        self._stage = stage
        self._agree = agree
        self._seconds = _seconds_between_writes()
        self._due = time.monotonic() + self._seconds

    def load(self) -> State | None:
        """Return the state to go on from; None where there is none, or none that is whole."""
        if self._path is None or not self._path.exists():
            return None
        try:
            return decode_state(self._path.read_bytes())
        except (OSError, ValueError) as error:
            _say(self._stage, f"{self._path}: is ignored and this work begins anew: {error}")
            return None

    def offer(self, make_state: Callable[[], State]) -> None:
        """Write the state if it is time, or if the stage was asked to stop; otherwise do nothing.

        To be called after each step: it costs less than a microsecond where nothing is written and
        one process works; several agree on it, by a message that waits for no device.

        Raises:
            Interrupted: The stage was asked to stop.
        """
        due = time.monotonic() >= self._due
        wish = self._agree(self._interruption.number or (0 if due else -1))
        if wish < 0:
            return
        self._write(make_state())
        if wish > 0:
            raise Interrupted(wish)

    def once(self, function: Callable[[], Value]) -> Value:
        """Return what `function` returns, from the file where an earlier run has finished it.

        Args:
            function: The whole piece of work; what it returns is written as JSON.

        Raises:
            Interrupted: The stage was asked to stop; no further piece is begun.
        """
        state = self.load()
        if state is not None and "finished" in state.record:
            finished: Value = state.record["finished"]
            return finished
        self._interruption.check()
        value = function()
        self._write(State(record={"finished": value}))
        return value

    def _write(self, state: State) -> None:
        if self._path is not None:
            try:
                write_at_once(self._path, encode_state(state))
            except OSError as error:
                # The result matters more than the checkpoint: say so once and work on without.
                _say(self._stage, f"goes on without a checkpoint: {error}")
                self._path = None
        self._due = time.monotonic() + self._seconds


class Checkpoints:
    """The folder of one run of a stage: `with Checkpoints("condense", fingerprint) as checkpoints`.

    Leaving the block as usual removes the folder, the work being finished; leaving it by an error
    or a signal keeps it.

    Attributes:
        folder: Where the files are; None where none can be kept.
    """

    def __init__(
        self,
        stage: str,
        fingerprint: str,
        agree: Callable[[int], int] = int,
        keep: bool = True,
    ) -> None:
        """Name the run; nothing happens yet.

        Args:
            stage: The stage's name.
            fingerprint: Of all that determines the result.
            agree: How several processes at this work come to one mind; see `Checkpoint`.
            keep: Whether this process is the one of them that writes.
        """
        self.folder: Path | None = None
        self._agree, self._keep = agree, keep
        self._stage = stage
        self._prefix = f"{stage.replace(' ', '-')}-{fingerprint}"
        self._lock: int | None = None
        self._interruption = Interruption()

    def __enter__(self) -> Self:
        """Take a folder that no other process uses, and listen to signals."""
        self._interruption.listen()
        if not self._keep:
            return self
        parent = checkpoint_folder()
        try:
            _remove_abandoned(parent)
            slot = 0
            while self._lock is None:
                self.folder = parent / f"{self._prefix}-{slot}"
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(self.folder)
                slot += 1
        except OSError as error:
            _say(self._stage, f"goes on without a checkpoint: {error}")
            self.folder = None
        if self.folder is not None and any(self.folder.glob("*.state")):
            _say(self._stage, f"goes on from {shown(self.folder)}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what is finished; of an interruption, say how to go on."""
        self._interruption.ignore()
        if isinstance(error, Interrupted):
            kept = self.folder is not None and any(self.folder.glob("*.state"))
            after = "the same command goes on from there" if kept else "nothing had been finished"
            _say(self._stage, f"stopped by {error.name}; {after}")
        if self.folder is not None:
            if kind is None:
                for folder in self.folder.parent.glob(f"{self._prefix}-*"):
                    if folder != self.folder:
                        _remove_unless_used(folder)
                shutil.rmtree(self.folder, ignore_errors=True)
            elif not any(self.folder.iterdir()):
                self.folder.rmdir()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def piece(self, name: str) -> Checkpoint:
        """Return the checkpoint of one piece of the work, by a name that can be a file's."""
        path = None if self.folder is None else self.folder / f"{name}.state"
        return Checkpoint(path, self._interruption, self._stage, self._agree)


def checkpoint_folder() -> Path:
    """Return the folder of all checkpoints, in the folder that the stage runs in.

    DVC runs queued experiments in copies under `.dvc/tmp/exps`, which it deletes when they fail;
    their checkpoints are kept in the repository itself.
    """
    here = Path.cwd()
    for parent in here.parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2] / FOLDER
    return here / FOLDER


def _seconds_between_writes() -> float:
    given = os.environ.get("CHECKPOINT_SECONDS", str(SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise ValueError(f"CHECKPOINT_SECONDS: got {given!r}, takes a number of seconds from 0")
    return seconds


def _lock(folder: Path) -> int | None:
    # A descriptor that holds the folder's lock; None where another process holds or removed it.
    if sys.platform == "win32":
        return os.open(os.devnull, os.O_RDONLY)
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.iterdir() if parent.is_dir() else ():
        # Another process may remove files meanwhile.
        with contextlib.suppress(FileNotFoundError):
            times = [path.stat().st_mtime for path in (folder, *folder.glob("*"))]
            if time.time() - max(times) > KEPT_SECONDS:
                _remove_unless_used(folder)


def _remove_unless_used(folder: Path) -> None:
    descriptor = _lock(folder)
    if descriptor is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def shown(path: Path) -> Path:
    """Return a path for people: relative to the folder that the stage runs in, if it is there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _say(stage: str, text: str) -> None:
    print(f"{stage}: {text}", file=sys.stderr, flush=True)
