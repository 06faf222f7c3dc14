"""Published files from the network: in place whole and checked, or not at all."""

import hashlib
import http.client
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

from tqdm import tqdm

from condensation.errors import one_line
from condensation.files import replacing

ATTEMPTS = 3
"""Times that a file is begun anew before its download is given up."""
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


def fetch(files: Sequence[RemoteFile], folder: Path) -> None:
    """Download the files that the folder does not have; those that it has are left as they are.

    Raises:
        OSError: A file cannot be downloaded, or is another one than was published; the message
            names each missing file, where it is to be put and where it comes from.
    """
    missing = [file for file in files if not (folder / file.name).exists()]
    for number, file in enumerate(missing):
        try:
            _download(file, folder / file.name)
        except (OSError, http.client.HTTPException) as error:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
            left = missing_files(missing[number:], folder)
            raise OSError(f"{left} ({one_line(error)})") from None


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


def _download(file: RemoteFile, path: Path) -> None:
    with replacing(path) as temporary:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                digest = _receive(file.address, temporary)
                if digest != file.md5:
                    raise OSError(f"its md5 is {digest}, not {file.md5}")
            except (OSError, http.client.HTTPException):
                if attempt == ATTEMPTS:
                    raise
            else:
                return


def _receive(address: str, path: Path) -> str:
    # Write what is at the address to a file and return its md5.
    digest = hashlib.md5(usedforsecurity=False)
    request = Request(address, headers={"User-Agent": "Python"})
    with urlopen(request, timeout=TIMEOUT) as response, path.open("wb") as file:
        total = int(response.headers.get("Content-Length") or 0)
        name = address.rpartition("/")[2]
        with tqdm(
            total=total or None,
            desc=f"prepare: {name}",
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            disable=None,  # where there is no terminal
        ) as bar:
            while block := response.read(_BLOCK):
                file.write(block)
                digest.update(block)
                bar.update(len(block))
    return digest.hexdigest()
