"""Raw files of a dataset -> arrays. One function a dataset, registered in `DATASETS`.

Shapes: N = number of images, image = (ch, h, w).
"""

import gzip
import hashlib
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file

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


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its authors publish it.

    Attributes:
        train_images: (N, ch, h, w) uint8.
        train_labels: (N,) int64.
        test_images: (N, ch, h, w) uint8.
        test_labels: (N,) int64.
        class_names: One name for each class.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]


def read_mnist(folder: Path) -> RawDataset:
    """Read MNIST (LeCun, Cortes and Burges) from its four gzip files, checking their content.

    Raises:
        ValueError: A file is missing, damaged, or is not the published one.
    """
    contents = [_decompress(folder / name, digest) for name, digest in MNIST_FILES.items()]
    # torchvision reads the idx format from files only.
    with tempfile.TemporaryDirectory() as temporary:
        paths = [Path(temporary) / name.removesuffix(".gz") for name in MNIST_FILES]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        train_images, test_images = (read_image_file(str(path)) for path in paths[0::2])
        train_labels, test_labels = (read_label_file(str(path)) for path in paths[1::2])
    return RawDataset(
        train_images.unsqueeze(1),
        train_labels,
        test_images.unsqueeze(1),
        test_labels,
        tuple("0123456789"),
    )


def _decompress(path: Path, digest: str) -> bytes:
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(
            f"{path}: is missing; prepare.raw takes the folder of {', '.join(MNIST_FILES)}"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be decompressed ({error})") from None
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ValueError(
            f"{path}: is not the published file: the sha256 of its content is {found}, not {digest}"
        )
    return content


DATASETS: dict[str, Callable[[Path], RawDataset]] = {"mnist": read_mnist}
