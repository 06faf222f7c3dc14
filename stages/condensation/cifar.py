"""CIFAR-10 and CIFAR-100, from the published archive or what torchvision has taken out of it."""

import pickle
import tarfile
import tempfile
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from condensation.downloads import RemoteFile, check_published
from condensation.errors import one_line
from condensation.raw_dataset import RawDataset

CIFAR10_FILES = (RemoteFile(CIFAR10.filename, CIFAR10.url, CIFAR10.tgz_md5),)
CIFAR100_FILES = (RemoteFile(CIFAR100.filename, CIFAR100.url, CIFAR100.tgz_md5),)


def read_cifar10(folder: Path) -> RawDataset:
    """Read CIFAR-10 (Krizhevsky, 2009).

    Raises:
        ValueError: A file is missing, damaged, or is not the published one.
    """
    return _read(CIFAR10, CIFAR10_FILES[0], folder)


def read_cifar100(folder: Path) -> RawDataset:
    """Read CIFAR-100 (Krizhevsky, 2009) with its 100 fine classes.

    Raises:
        ValueError: A file is missing, damaged, or is not the published one.
    """
    return _read(CIFAR100, CIFAR100_FILES[0], folder)


def _read(dataset: type[CIFAR10], archive: RemoteFile, folder: Path) -> RawDataset:
    path = folder / archive.name
    if (folder / dataset.base_folder).is_dir():
        try:
            return _read_files(dataset, folder)
        except ValueError as error:
            if not path.is_file():
                raise ValueError(f"{error}; without that folder, {archive.name} is taken") from None
    if not path.is_file():
        raise ValueError(f"{path}: is missing, and so is the folder {dataset.base_folder}")
    check_published(path, archive)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with tarfile.open(path) as opened:
                opened.extractall(temporary, filter="data")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: cannot be taken apart ({error})") from None
        return _read_files(dataset, Path(temporary))


def _read_files(dataset: type[CIFAR10], folder: Path) -> RawDataset:
    # torchvision compares the md5 of each file before it is read; only then are pickles opened.
    try:
        train, test = (dataset(str(folder), train=train) for train in (True, False))
    except (RuntimeError, pickle.UnpicklingError, KeyError, EOFError) as error:
        files = [name for name, _ in (*dataset.train_list, *dataset.test_list)]
        raise ValueError(
            f"{folder / dataset.base_folder}: its files ({', '.join(files)}, "
            f"{dataset.meta['filename']}) are not all there as published ({one_line(error)})"
        ) from None
    return RawDataset(
        _channels_first(train),
        torch.tensor(train.targets),
        _channels_first(test),
        torch.tensor(test.targets),
        tuple(train.classes),
    )


def _channels_first(dataset: CIFAR10) -> Tensor:
    # (N, h, w, ch) -> (N, ch, h, w)
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
