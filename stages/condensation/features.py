"""What images are compared by: a vector of features for each.

Shapes: n = number of images, F = features of an image, image = (ch, h, w).
"""

from collections.abc import Callable

from torch import Tensor

from condensation.datasets import Dataset

Features = Callable[[Dataset, Tensor], Tensor]
"""`(dataset, images (n, ch, h, w) uint8)` -> (n, F) float32."""


def pixels(dataset: Dataset, images: Tensor) -> Tensor:
    """The normalised pixels themselves."""
    return dataset.normalise(images).flatten(1)
