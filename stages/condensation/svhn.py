"""SVHN, cropped house numbers: two files in MATLAB's format, which is read here.

MATLAB's level 5 MAT-file format: a header of 128 bytes, then elements of a type, a length and the
data, aligned to 8 bytes; an element may hold others, or be compressed with zlib. Of a matrix the
elements are flags, sizes, the name and the numbers, in the order of Fortran.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import SVHN

from condensation.downloads import RemoteFile, check_published
from condensation.raw_dataset import RawDataset

SVHN_FILES = tuple(
    RemoteFile(name, address, md5)
    for address, name, md5 in (SVHN.split_list["train"], SVHN.split_list["test"])
)

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
"""Type of an element of numbers -> type in numpy."""
_MATRIX, _COMPRESSED = 14, 15


def read_svhn(folder: Path) -> RawDataset:
    """Read SVHN (Netzer et al., 2011), its parts `train` and `test`.

    Raises:
        ValueError: A file is missing, damaged, or is not the published one; all such are named.
    """
    parts: list[Tensor] = []
    problems = []
    for file in SVHN_FILES:
        try:
            parts += _read_part(folder, file)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    train_images, train_labels, test_images, test_labels = parts
    return RawDataset(train_images, train_labels, test_images, test_labels, tuple("0123456789"))


def _read_part(folder: Path, file: RemoteFile) -> tuple[Tensor, Tensor]:
    # Return images (N, ch, h, w) and labels (N,).
    path = folder / file.name
    check_published(path, file)
    matrices = read_matrices(path.read_bytes(), str(path))
    images = torch.from_numpy(matrices["X"]).permute(3, 2, 0, 1).contiguous()  # from (h, w, ch, N)
    labels = torch.from_numpy(matrices["y"].astype(np.int64)).flatten()
    return images, labels % 10  # in the file, the digit 0 has the label 10


def read_matrices(content: bytes, name: str) -> dict[str, np.ndarray]:
    """Return the matrices of numbers in a MAT-file of level 5, by their names.

    Raises:
        ValueError: It is another file, or a damaged one.
    """
    if content[124:128] != b"\0\1IM":
        raise ValueError(f"{name}: is not a MAT-file of level 5")
    try:
        matrices = {}
        for kind, data in _elements(content[128:]):
            if kind == _COMPRESSED:
                ((kind, data),) = _elements(zlib.decompress(data))
            if kind == _MATRIX:
                _, (_, sizes), (_, letters), (number, values) = _elements(data)
                shape = np.frombuffer(sizes, "<i4")
                array = np.frombuffer(values, f"<{_NUMBERS[number]}")
                matrices[letters.decode()] = array.reshape(shape, order="F").copy()
    except (struct.error, zlib.error, KeyError, ValueError) as error:
        raise ValueError(f"{name}: is a damaged MAT-file ({error})") from None
    return matrices


def _elements(content: bytes) -> list[tuple[int, bytes]]:
    # Split bytes into elements: (type, data).
    found = []
    place = 0
    while place < len(content):
        kind, length = struct.unpack_from("<II", content, place)
        begin = place + 8
        if kind >> 16:  # up to four bytes stand in the second word, and the length in the first
            kind, length, begin = kind & 0xFFFF, kind >> 16, place + 4
        if begin + length > len(content):
            raise ValueError("it ends too early")
        found.append((kind, content[begin : begin + length]))
        # A compressed element is not padded.
        place = begin + length if kind == _COMPRESSED else -(-(begin + length) // 8) * 8
    return found
