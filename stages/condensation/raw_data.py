"""Raw files of a dataset -> arrays. One function a dataset, registered in `DATASETS`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from torchvision.datasets import CIFAR10, CIFAR100

from condensation.cifar import CIFAR10_FILES, CIFAR100_FILES, read_cifar10, read_cifar100
from condensation.downloads import RemoteFile, fetch
from condensation.idx_datasets import (
    FASHION_MNIST_DOWNLOADS,
    read_fashion_mnist,
    read_mnist,
)
from condensation.own_folders import unread_folders
from condensation.own_images import read_own_images
from condensation.raw_dataset import RawDataset
from condensation.resizing import resize
from condensation.svhn import SVHN_FILES, read_svhn
from condensation.tiny_imagenet import TINY_IMAGENET_FILES, read_tiny_imagenet

DATA = Path("data")
"""Where a dataset is looked for that is given as a path."""


def read_raw(dataset: str, folder: Path | None, image_size: int | None, seed: int) -> RawDataset:
    """Read a dataset, downloading its files first if need be.

    Args:
        dataset: A name in `DATASETS`, or the path of one's own images, from `data`.
        folder: Where the files of a named dataset are. None: in `data/<name>`, or downloaded into
            `data/raw/<name>`.
        image_size: Height and width that every image is brought to; None: as they are.
        seed: Draws the test part of one's own images where there is none.

    Raises:
        ValueError: A file is missing, damaged, or is not the published one.
        OSError: A file cannot be downloaded.
    """
    if dataset not in DATASETS:
        if folder is not None:
            raise ValueError(
                f"prepare.raw: got {folder}, takes auto for one's own images: dataset says where "
                f"they are ({dataset})"
            )
        return read_own_images(DATA / dataset, image_size, seed)
    downloads, given = DOWNLOADS[dataset], folder
    if folder is None:
        folder = DATA / "raw" / dataset if downloads else DATA / dataset
        if dataset not in UNPACKED or not (folder / UNPACKED[dataset]).is_dir():
            fetch(downloads, folder)
    try:
        raw = DATASETS[dataset](folder)
    except ValueError as error:
        sources = ", ".join(file.address for file in downloads)
        if given is None and downloads:
            advice = f"; remove what is damaged, and prepare downloads it again, from {sources}"
        else:
            origin = f"at {sources}" if sources else f"in Git: git checkout data/{dataset}"
            advice = (
                f"; prepare.raw takes auto or the folder of the files of {dataset}; the published "
                f"files are {origin}"
            )
        raise ValueError(f"{error}{advice}") from None
    if image_size is None:
        return raw
    return dataclasses.replace(
        raw,
        train_images=resize(raw.train_images, image_size),
        test_images=resize(raw.test_images, image_size),
    )


def not_read(dataset: str) -> list[str]:
    """Return the names of the folders of one's own images that nothing is read of.

    Args:
        dataset: As of `read_raw`, which has read it.
    """
    path = DATA / dataset
    return unread_folders(path) if dataset not in DATASETS and path.is_dir() else []


UNPACKED = {"cifar10": CIFAR10.base_folder, "cifar100": CIFAR100.base_folder}
"""Folders that stand for a dataset's archive, as torchvision leaves them."""

DATASETS: dict[str, Callable[[Path], RawDataset]] = {
    "mnist": read_mnist,
    "fashion_mnist": read_fashion_mnist,
    "svhn": read_svhn,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "tiny_imagenet": read_tiny_imagenet,
}

DOWNLOADS: dict[str, tuple[RemoteFile, ...]] = {
    "mnist": (),  # in the repository
    "fashion_mnist": FASHION_MNIST_DOWNLOADS,
    "svhn": SVHN_FILES,
    "cifar10": CIFAR10_FILES,
    "cifar100": CIFAR100_FILES,
    "tiny_imagenet": TINY_IMAGENET_FILES,
}
