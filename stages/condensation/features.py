"""What images are compared by: a vector of features for each.

Shapes: N = number of images, F = features of an image.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from condensation.datasets import Dataset

Features = Callable[[Dataset, torch.Generator], Tensor]
"""`(dataset, generator)` -> (N, F) float32, on the CPU."""


def pixels(dataset: Dataset, generator: torch.Generator) -> Tensor:
    """The normalised pixels themselves."""
    return dataset.normalise(dataset.images).flatten(1)
