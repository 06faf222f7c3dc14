"""Files written whole or not at all."""

import contextlib
import csv
import glob
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_UNFINISHED = ".unfinished"
_waiting: dict[Path, Path] | None = None  # within `together`: file -> temporary file


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically; within `together()`, at the end of the block.

    Raises:
        OSError: The file cannot be written; whatever was at `path` is still there.
    """
    _put(path, lambda file: file.write(content))


def write_at_once(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: to a temporary file beside it, then renamed.

    Raises:
        OSError: The file cannot be written; whatever was at `path` is still there.
    """
    _place(_write_beside(path, lambda file: file.write(content)), path)


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """Give a temporary path beside `path`, whose file takes its place when the block succeeds.

    For what is too large to be held in memory as a whole. Errors of the system within the block are
    taken for those of writing the file.

    Yields:
        The temporary path, in a folder that exists.

    Raises:
        OSError: The file cannot be written; whatever was at `path` is still there.
    """
    temporary = _temporary(path)
    try:
        with _naming(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # on the disk before it takes its place
        _place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def together() -> Generator[None, None, None]:
    """Write the files of a block all or none: none takes its place before all are on the disk.

    Raises:
        OSError: A file cannot be written; whatever was there before still is.
    """
    global _waiting
    files = _waiting = {}
    try:
        yield
        _waiting = None
        for path, temporary in files.items():
            _place(temporary, path)
    finally:
        _waiting = None
        for temporary in files.values():
            temporary.unlink(missing_ok=True)


def written(path: Path) -> Path:
    """Return where the content of a file is that was written: within `together()`, beside it."""
    return (_waiting or {}).get(path, path)


def check_writable(*paths: Path) -> None:
    """Make sure that files can be written before the work for them begins.

    Raises:
        OSError: A folder cannot be made or written to; the message names the file it is for.
    """
    for path in paths:
        with _naming(path):
            # Of the folders above the file, the first one that exists; none is made yet.
            folder = next(parent for parent in path.parents if parent.exists())
            with tempfile.TemporaryFile(dir=folder):
                pass


def _put(path: Path, write: Callable[[BinaryIO], object]) -> None:
    # Let a file be written, which takes its place at once, or at the end of `together`.
    temporary = _write_beside(path, write)
    if _waiting is None:
        _place(temporary, path)
    else:
        _waiting[path] = temporary


def _place(temporary: Path, path: Path) -> None:
    with _naming(path):
        temporary.replace(path)


def _write_beside(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    # Return a temporary file in the same folder that is on the disk as a whole.
    temporary = _temporary(path)
    with _naming(path):
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return temporary


def _temporary(path: Path) -> Path:
    # Return where a file can grow before it takes its place; its folder is made.
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
    return path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")


@contextlib.contextmanager
def _naming(path: Path) -> Generator[None, None, None]:
    # An error of the system may name no file, or the temporary one.
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path}: cannot be written ({reason})") from None


def _remove_leftovers(path: Path) -> None:
    # What processes left that were killed while they wrote this file.
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{_UNFINISHED}"):
        number = leftover.name.removesuffix(_UNFINISHED).rpartition(".")[2]
        if number.isdecimal() and not _is_running(int(number)):
            leftover.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if sys.platform == "win32":  # where the call below would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with one header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as `.npy`, whose bytes depend on nothing but the array; it is not copied."""
    _put(path, lambda file: np.save(file, array, allow_pickle=False))
