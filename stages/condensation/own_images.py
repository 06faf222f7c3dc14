"""The user's own images: a folder of picture files by class, or one `.npz` file of arrays.

Where there is no test part, one is drawn.

Shapes: N = number of images, C = classes, image = (ch, h, w).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from condensation.own_arrays import read_arrays
from condensation.own_folders import read_folder
from condensation.own_parts import printable
from condensation.randomness import generator
from condensation.raw_dataset import RawDataset

TEST_SHARE = 5
"""Where there is no test part: one image of so many of each class, and at least one."""


def read_own_images(path: Path, image_size: int | None, seed: int) -> RawDataset:
    """Read a folder of images by class or an `.npz` file.

    Args:
        path: The folder or the file.
        image_size: Height and width that every image is brought to; None: all have one size.
        seed: Draws the test part where there is none.

    Raises:
        ValueError: Something is missing, unreadable, of another size or wrongly labelled; all that
            is wrong is named, a line each.
    """
    if path.is_dir():
        found = read_folder(path, image_size)
    elif path.suffix.lower() == ".npz" and path.is_file():
        found = read_arrays(path, image_size)
    else:
        raise ValueError(
            f"dataset: got {path}, takes a folder with train/<class>/<images> or an .npz file, "
            "and there is none"
        )
    names = found.class_names
    problems = [
        *found.problems,
        *(_problems_of_classes(found.labels, names) if found.labels else []),
    ]
    if problems:
        lines = [f"dataset: {path} cannot be used:", *map(printable, problems)]
        raise ValueError("\n  ".join(lines))
    if len(found.labels) == 1:
        (images,), (labels,) = found.images, found.labels
        chosen = _draw_test(labels, len(names), seed)
        return RawDataset(images[~chosen], labels[~chosen], images[chosen], labels[chosen], names)
    (train_images, test_images), (train_labels, test_labels) = found.images, found.labels
    return RawDataset(train_images, train_labels, test_images, test_labels, names)


def _problems_of_classes(labels: Sequence[Tensor], names: tuple[str, ...]) -> list[str]:
    # Say which classes have too few images; `labels` are those of each part.
    problems = [] if len(names) > 1 else [f"it has {len(names)} class, takes at least 2"]
    least = 3 - len(labels)
    part = " (one of them becomes the test part)" if len(labels) == 1 else ""
    train, *test = (of_part.bincount(minlength=len(names)).tolist() for of_part in labels)
    problems += [
        f"class '{name}' has {count} training images, takes at least {least}{part}"
        for name, count in zip(names, train, strict=True)
        if count < least
    ]
    problems += [
        f"class '{name}' has no test image"
        for counts in test
        for name, count in zip(names, counts, strict=True)
        if count < 1
    ]
    return problems


def _draw_test(labels: Tensor, num_classes: int, seed: int) -> Tensor:
    # Return which of the images (N,) become the test part.
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(num_classes):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "test part", label))
        chosen[members[order[: max(1, len(members) // TEST_SHARE)]]] = True
    return chosen
