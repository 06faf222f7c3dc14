"""The first synthetic images. One function each, registered in `INITIALISERS`.

Shapes: C = classes, S = synthetic images a class (ipc), image = (ch, h, w).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from condensation.datasets import Dataset, sample_class

Initialiser = Callable[[Dataset, int, torch.Generator], Tensor]
"""`(dataset, ipc, generator)` -> (C, S, ch, h, w) float32, normalised."""


def noise(dataset: Dataset, ipc: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise in normalised space (Zhao, Mopuri and Bilen, ICLR 2021)."""
    return torch.randn(dataset.num_classes, ipc, *dataset.image_shape, generator=generator)


def real(dataset: Dataset, ipc: int, generator: torch.Generator) -> Tensor:
    """Random real images of the class, without repeats.

    Raises:
        ValueError: A class has fewer than `ipc` images.
    """
    drawn = [
        sample_class(dataset.class_images(index), ipc, name, generator)
        for index, name in enumerate(dataset.class_names)
    ]
    return dataset.normalise(torch.stack(drawn))


def mean(dataset: Dataset, ipc: int, generator: torch.Generator) -> Tensor:
    """Each image is the mean of its own random part of the class; the parts are equal in size.

    Raises:
        ValueError: A class has fewer than `ipc` images.
    """
    means = []
    for index, name in enumerate(dataset.class_names):
        images = dataset.class_images(index)
        shuffled = sample_class(images, max(len(images), ipc), name, generator)
        # Float64: a sum of thousands of pixels is then exact, the same on every machine.
        parts = [part.double().mean(0) for part in shuffled.tensor_split(ipc)]
        means.append(torch.stack(parts).float())
    return dataset.normalise(torch.stack(means))


INITIALISERS: dict[str, Initialiser] = {"noise": noise, "real": real, "mean": mean}
