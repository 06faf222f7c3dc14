"""Published files from the network: in place whole and checked, or not at all."""

import contextlib
import hashlib
import http.client
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from condensation.errors import one_line
from condensation.files import check_writable, replacing

ATTEMPTS = 3
"""Times that a file is asked for before its download is given up."""
TIMEOUT = 30
"""Seconds without a byte after which an attempt has failed."""
_BLOCK = 1 << 16


class RemoteFile(NamedTuple):
    """A file that a dataset is read from.

    Attributes:
        name: In the folder of the dataset.
        address: Where it is published.
        md5: Of the file, as its authors publish it.
    """

    name: str
    address: str
    md5: str


class _NotReceivedError(Exception):
    """What came over the network is not the file, or nothing came: it may the next time."""


def fetch(files: Sequence[RemoteFile], folder: Path) -> None:
    """Download the files that the folder does not have; those that it has are left as they are.

    Raises:
        OSError: A file cannot be downloaded, or is another one than was published; the message
            names each missing file, where it is to be put and where it comes from. Or a file cannot
            be written; the message names it.
    """
    missing = _missing(files, folder)
    check_writable(*(folder / file.name for file in missing))
    was_there = folder.exists()
    try:
        for file in missing:
            _download(file, folder / file.name)
    except _NotReceivedError as error:
        left = missing_files(_missing(files, folder), folder)
        raise OSError(f"{left} ({error})") from None
    finally:
        if not was_there:
            # It stays if it has files; if it cannot be removed, what went wrong before is told.
            with contextlib.suppress(OSError):
                folder.rmdir()


def missing_files(files: Sequence[RemoteFile], folder: Path) -> str:
    """Say which files are missing, where they are to be put, and where they come from."""
    names = ", ".join(file.name for file in files)
    addresses = ", ".join(file.address for file in files)
    return (
        f"{folder}: has no {names}; put them there, or set prepare.raw to a folder that has them. "
        f"They come from {addresses}, and could not be downloaded"
    )


def check_published(path: Path, file: RemoteFile) -> None:
    """Make sure that a file is the published one.

    Raises:
        ValueError: It is missing, or another one.
    """
    try:
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "md5").hexdigest()
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing") from None
    if digest != file.md5:
        raise ValueError(f"{path}: is not the published file: its md5 is {digest}, not {file.md5}")


def _missing(files: Sequence[RemoteFile], folder: Path) -> list[RemoteFile]:
    return [file for file in files if not (folder / file.name).exists()]


def _download(file: RemoteFile, path: Path) -> None:
    with replacing(path) as temporary:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                digest = _receive(file.address, temporary)
                if digest != file.md5:
                    raise _NotReceivedError(f"its md5 is {digest}, not {file.md5}")
            except _NotReceivedError:
                if attempt == ATTEMPTS:
                    raise
            else:
                return


def _receive(address: str, path: Path) -> str:
    # Write what is at the address to a file and return its md5.
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("wb") as file:
        for block in _blocks(address):
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def _blocks(address: str) -> Iterator[bytes]:
    # Yield what is at the address. All of the network is here, and nothing of the disk: both fail
    # with an OSError.
    request = Request(address, headers={"User-Agent": "Python"})
    try:
        with urlopen(request, timeout=TIMEOUT) as response:
            length = response.headers.get("Content-Length") or ""
            with tqdm(
                total=int(length) if length.isdecimal() else None,
                desc=f"prepare: {address.rpartition('/')[2]}",
                unit="B",
                unit_scale=True,
                file=sys.stderr,
                disable=None,  # where there is no terminal
            ) as bar:
                while block := response.read(_BLOCK):
                    yield block
                    bar.update(len(block))
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, HTTPError):  # an answer: its connection is open
            error.close()
        raise _NotReceivedError(one_line(error)) from None
