"""MNIST and Fashion-MNIST: four gzip files each, in the idx format.

Shapes: N = number of images, image = (ch, h, w).
"""

import gzip
import hashlib
import math
import struct
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from torchvision.datasets import FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from condensation.downloads import RemoteFile
from condensation.raw_dataset import RawDataset

MNIST_FILES = {
    "train-images-idx3-ubyte.gz": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte.gz": (
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}
"""File name -> sha256 of its decompressed content."""

FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte.gz": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}
"""Likewise; the compressed files themselves differ from source to source."""

FASHION_MNIST_DOWNLOADS = tuple(
    RemoteFile(name, FashionMNIST.mirrors[0] + name, md5) for name, md5 in FashionMNIST.resources
)

LARGEST = 50_000_000
"""Bytes that a file is decompressed to at most; the largest published one has 47,040,016."""


def read_mnist(folder: Path) -> RawDataset:
    """Read MNIST (LeCun, Cortes and Burges) from its four gzip files, checking their content.

    Raises:
        ValueError: A file is missing, damaged, or is not the published one; all such are named.
    """
    return _read(folder, MNIST_FILES, tuple("0123456789"))


def read_fashion_mnist(folder: Path) -> RawDataset:
    """Read Fashion-MNIST (Xiao, Rasul and Vollgraf) likewise.

    Raises:
        ValueError: A file is missing, damaged, or is not the published one; all such are named.
    """
    return _read(folder, FASHION_MNIST_FILES, tuple(FashionMNIST.classes))


def _read(folder: Path, files: Mapping[str, str], class_names: tuple[str, ...]) -> RawDataset:
    contents: list[bytes] = []
    problems = []
    for name, digest in files.items():
        try:
            contents.append(_decompress(folder / name, digest))
            check_idx(contents[-1], 3 if "images" in name else 1, str(folder / name))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    # torchvision reads the idx format from files only.
    with tempfile.TemporaryDirectory() as temporary:
        paths = [Path(temporary) / name.removesuffix(".gz") for name in files]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        train_images, test_images = (read_image_file(str(path)) for path in paths[0::2])
        train_labels, test_labels = (read_label_file(str(path)) for path in paths[1::2])
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if len(images) != len(labels) or labels.max() > 9:
            raise ValueError(f"{folder}: its labels are not one digit for each image")
    return RawDataset(
        train_images.unsqueeze(1),
        train_labels,
        test_images.unsqueeze(1),
        test_labels,
        class_names,
    )


def _decompress(path: Path, digest: str) -> bytes:
    # Return the content of a gzip file with that sha256.
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be decompressed ({error})") from None
    if len(content) > LARGEST:
        raise ValueError(f"{path}: is not the published file: it holds more than {LARGEST} bytes")
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ValueError(
            f"{path}: is not the published file: the sha256 of its content is {found}, not {digest}"
        )
    return content


def check_idx(content: bytes, num_dimensions: int, name: str) -> None:
    """Make sure that bytes are in the idx format of unsigned bytes, with all that it announces.

    The format: two zero bytes, the type (8), the number of dimensions, each one as four bytes, the
    highest first, and then the numbers themselves.

    Raises:
        ValueError: They are not.
    """
    header = 4 + 4 * num_dimensions
    expected = bytes([0, 0, 8, num_dimensions])
    if len(content) < header or content[:4] != expected:
        raise ValueError(
            f"{name}: is not of the idx format: begins with {content[:4].hex()}, not "
            f"{expected.hex()}"
        )
    sizes = struct.unpack(f">{num_dimensions}I", content[4:header])
    if len(content) != header + math.prod(sizes) or 0 in sizes:
        raise ValueError(
            f"{name}: announces {' x '.join(map(str, sizes))} bytes and holds "
            f"{len(content) - header}"
        )
