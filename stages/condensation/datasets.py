"""The prepared dataset: uint8 images, and batches of them drawn by class.

Shapes: N = number of images, C = classes, R = images drawn per class, image = (ch, h, w).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from condensation.devices import to_device
from condensation.files import together, write_array, write_json


@dataclass(frozen=True)
class Dataset:
    """Labelled images and the statistics that normalise them.

    Attributes:
        images: (N, ch, h, w) uint8.
        labels: (N,) int64.
        mean: (ch,) float32 of the whole training set, in pixel values from 0 to 1.
        std: (ch,) float32, likewise.
        class_names: One name for each class.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(ch, h, w)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def class_sizes(self) -> list[int]:
        """The number of images of each class."""
        sizes: list[int] = self.labels.bincount(minlength=self.num_classes).tolist()
        return sizes

    def normalise(self, images: Tensor) -> Tensor:
        """Return uint8 images (..., ch, h, w) as float32 with mean 0 and standard deviation 1."""
        return normalised(images, *(each.to(images.device) for each in (self.mean, self.std)))

    def members(self) -> list[Tensor]:
        """Return the places of the images of each class, in the order of the dataset: (n,) each."""
        return [(self.labels == c).nonzero().flatten() for c in range(self.num_classes)]

    def class_images(self, class_index: int) -> Tensor:
        """Return all images of one class: (n, ch, h, w) uint8, in the order of the dataset."""
        return self.images[self.labels == class_index]


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return uint8 images (..., ch, h, w) as float32, less the mean (ch,), over the std (ch,)."""
    return (images.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


_NAMED = 20
"""Classes that are named at most: of hundreds, all may be too small."""


def require_images(dataset: Dataset, counts: Sequence[int]) -> None:
    """Check that every class has images enough.

    Raises:
        ValueError: Classes have fewer than their number in `counts`; they are named.
    """
    if said := shortages(dataset, counts):
        raise ValueError(said)


def shortages(dataset: Dataset, counts: Sequence[int]) -> str:
    """Say which classes have fewer images than their number in `counts`; nothing if none has."""
    found = [
        _shortage(*of_class)
        for of_class in zip(dataset.class_names, dataset.class_sizes, counts, strict=True)
        if of_class[1] < of_class[2]
    ]
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return "; ".join(found[:_NAMED]) + more


def _shortage(name: str, size: int, asked: int) -> str:
    return f"class '{name}': has {size} images, fewer than the {asked} asked for"


def sample_class(images: Tensor, num_images: int, name: str, stream: torch.Generator) -> Tensor:
    """Draw `num_images` of one class's images, without repeats: (num_images, ...).

    Args:
        images: (n, ...), all images of the class, or their places.
        num_images: How many to draw.
        name: The class's name, for the message.
        stream: Where to draw from.

    Raises:
        ValueError: The class has fewer images than that.
    """
    if len(images) < num_images:
        raise ValueError(_shortage(name, len(images), num_images))
    chosen = torch.randperm(len(images), generator=stream)[:num_images]
    return images[to_device(chosen, images.device)]


def write_prepared(folder: Path, train: Dataset, test: Dataset, validation_index: Tensor) -> None:
    """Write the prepared data, all or none: `.npy` arrays and `statistics.json`.

    Args:
        folder: Where to.
        train: The whole training set.
        test: The test set.
        validation_index: (V,) int64, the training images that are set aside for validation.
    """
    with together():
        for name, dataset in (("train", train), ("test", test)):
            write_array(folder / f"{name}_images.npy", dataset.images.numpy())
            write_array(folder / f"{name}_labels.npy", dataset.labels.numpy())
        write_array(folder / "validation_index.npy", validation_index.numpy())
        write_json(
            folder / "statistics.json",
            {
                "class_names": list(train.class_names),
                "mean": train.mean.tolist(),
                "std": train.std.tolist(),
            },
        )


def load_training(folder: Path, split: str) -> Dataset:
    """Load the real images that may be learned from.

    Args:
        folder: The prepared data.
        split: `test`: the whole training set; `validation`: all of it but the validation part.

    Raises:
        ValueError: A file is missing or damaged, or the validation part is empty.
    """
    dataset = _load(folder, "train")
    return (
        _subset(dataset, ~_validation_mask(folder, dataset)) if split == "validation" else dataset
    )


def load_scoring(folder: Path, split: str) -> Dataset:
    """Load the real images that accuracy is measured on.

    Args:
        folder: The prepared data.
        split: `test`: the test set; `validation`: the validation part of the training set, in which
            a class of one image has none.

    Raises:
        ValueError: A file is missing or damaged, or the validation part is empty.
    """
    if split == "test":
        return _load(folder, "test")
    dataset = _load(folder, "train")
    return _subset(dataset, _validation_mask(folder, dataset))


def _load(folder: Path, part: str) -> Dataset:
    # Mapped: a page of the file is read when one of its images is used, and can be given up again.
    images = _array(folder / f"{part}_images.npy", mapped=True)
    labels = _array(folder / f"{part}_labels.npy")
    path = folder / "statistics.json"
    try:
        statistics = json.loads(path.read_text())
        mean, std = torch.tensor(statistics["mean"]), torch.tensor(statistics["std"])
        class_names = tuple(statistics["class_names"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); run prepare again") from None
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder}: {part} images and labels do not fit; run prepare again")
    return Dataset(images, labels, mean, std, class_names)


def _array(path: Path, mapped: bool = False) -> Tensor:
    # A mapped array is private: what is written to it, if anything, does not reach the file.
    try:
        return torch.from_numpy(np.load(path, "c" if mapped else None, allow_pickle=False))
    except (OSError, EOFError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read ({reason}); run prepare again") from None


def _validation_mask(folder: Path, dataset: Dataset) -> Tensor:
    index = _array(folder / "validation_index.npy")
    if not len(index):
        raise ValueError(
            "split: got validation, but the validation part is empty, since no class has two "
            "training images; takes test"
        )
    return torch.zeros(len(dataset.labels), dtype=torch.bool).index_fill(0, index, True)


def _subset(dataset: Dataset, mask: Tensor) -> Dataset:
    return Dataset(
        dataset.images[mask],
        dataset.labels[mask],
        dataset.mean,
        dataset.std,
        dataset.class_names,
    )
