"""Tiny ImageNet: 200 classes of 64 x 64 pixels, read from its archive as it is.

The labels of its part `test` are not published: what is scored on is the part `val`.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from condensation.downloads import RemoteFile, check_published
from condensation.errors import one_line
from condensation.raw_dataset import RawDataset

TINY_IMAGENET_FILES = (
    RemoteFile(
        "tiny-imagenet-200.zip",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
    ),
)
_TOP = "tiny-imagenet-200"


def read_tiny_imagenet(folder: Path) -> RawDataset:
    """Read Tiny ImageNet (Le and Yang, 2015; from ImageNet).

    A class is called by the first of its words; a second class of that word, by its number too.

    Raises:
        ValueError: The archive is missing, damaged, or is not the published one.
    """
    file = TINY_IMAGENET_FILES[0]
    path = folder / file.name
    check_published(path, file)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except (zipfile.BadZipFile, zlib.error, KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)})") from None


def _read(archive: zipfile.ZipFile) -> RawDataset:
    numbers = sorted(archive.read(f"{_TOP}/wnids.txt").decode().split())
    labels = {number: label for label, number in enumerate(numbers)}
    train = {
        name: labels[name.split("/")[2]]
        for name in sorted(archive.namelist())
        if name.startswith(f"{_TOP}/train/") and name.endswith(".JPEG")
    }
    annotations = archive.read(f"{_TOP}/val/val_annotations.txt").decode().splitlines()
    test = {
        f"{_TOP}/val/images/{name}": labels[number]
        for name, number, *_ in (line.split("\t") for line in annotations)
    }
    words = dict(
        line.split("\t", 1) for line in archive.read(f"{_TOP}/words.txt").decode().splitlines()
    )
    return RawDataset(
        *_read_images(archive, train), *_read_images(archive, test), _names(numbers, words)
    )


def _read_images(archive: zipfile.ZipFile, labels: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    # Return the images (N, ch, h, w) of the members, and their labels (N,).
    images = torch.empty(len(labels), 3, 64, 64, dtype=torch.uint8)
    for index, name in enumerate(labels):
        with Image.open(io.BytesIO(archive.read(name))) as image:
            images[index] = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return images, torch.tensor([*labels.values()])


def _names(numbers: list[str], words: Mapping[str, str]) -> tuple[str, ...]:
    first = [words[number].split(",")[0].strip() for number in numbers]
    return tuple(
        f"{name} ({number})" if name in first[:index] else name
        for index, (name, number) in enumerate(zip(first, numbers, strict=True))
    )
