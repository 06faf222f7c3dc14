"""The first synthetic images. One function each, registered in `INITIALISERS`.

Shapes: C = classes, N = synthetic images, class after class, image = (ch, h, w).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from condensation.averages import cluster_centers, nearest_images, part_means
from condensation.coresets import Coreset, cover, herd
from condensation.datasets import Dataset, require_images, sample_class
from condensation.features import Features

Counts = Sequence[int]
"""Synthetic images of each class."""

Initialiser = Callable[[Dataset, Counts, torch.Generator, Features], Tensor]
"""`(dataset, counts, generator, features)` -> (N, ch, h, w) float32, normalised.

All raise a ValueError that names the class where a class has no images, and, but for `noise` and
the constants, where it has fewer than are asked for.
"""


def noise(
    dataset: Dataset, counts: Counts, generator: torch.Generator, features: Features
) -> Tensor:
    """Standard normal noise in normalised space (Zhao, Mopuri and Bilen, ICLR 2021)."""
    require_images(dataset, [1] * len(counts))
    return torch.randn(sum(counts), *dataset.image_shape, generator=generator)


def black(
    dataset: Dataset, counts: Counts, generator: torch.Generator, features: Features
) -> Tensor:
    """Pixel value 0 everywhere.

    Not what Cartwright's GradientMatching calls black: see `zeros`. Normalised it is less than 0,
    and differs from what convolutions put around the image.
    """
    return _constant(dataset, counts, 0)


def grey(
    dataset: Dataset, counts: Counts, generator: torch.Generator, features: Features
) -> Tensor:
    """Half of the largest pixel value everywhere.

    That of Cartwright's GradientMatching is 0.5 in normalised space: a pixel of 0.28 on MNIST.
    """
    return _constant(dataset, counts, 255 / 2)


def white(
    dataset: Dataset, counts: Counts, generator: torch.Generator, features: Features
) -> Tensor:
    """The largest pixel value everywhere.

    That of Cartwright's GradientMatching is 1 in normalised space: a pixel of 0.44 on MNIST.
    """
    return _constant(dataset, counts, 255)


def zeros(
    dataset: Dataset, counts: Counts, generator: torch.Generator, features: Features
) -> Tensor:
    """0 everywhere in normalised space: the mean of all pixels of the data set.

    The black of Cartwright's GradientMatching. It is also what convolutions put around an image, so
    that each channel is constant, and an instance norm divides differences of rounding by the root
    of its epsilon.
    """
    require_images(dataset, [1] * len(counts))
    return torch.zeros(sum(counts), *dataset.image_shape)


def real(
    dataset: Dataset, counts: Counts, generator: torch.Generator, features: Features
) -> Tensor:
    """Random real images of the class, without repeats (Zhao, Mopuri and Bilen, ICLR 2021)."""
    require_images(dataset, counts)
    drawn = [
        sample_class(dataset.class_images(index), count, name, generator)
        for index, (name, count) in enumerate(zip(dataset.class_names, counts, strict=True))
    ]
    return dataset.normalise(torch.cat(drawn))


def mean(
    dataset: Dataset, counts: Counts, generator: torch.Generator, features: Features
) -> Tensor:
    """Each image is the mean of its own random part of the class; see `part_means`.

    With one image it is the mean of the class, the prototype of Snell, Swersky and Zemel (NeurIPS
    2017), there of features. The parts are this project's own.
    """
    return dataset.normalise(torch.cat(part_means(dataset, counts, generator)))


def kmeans(
    dataset: Dataset, counts: Counts, generator: torch.Generator, features: Features
) -> Tensor:
    """The real images nearest the centres of clusters of the class; k-means of pixels.

    As DREAM chooses real images, by features there (Liu et al., ICCV 2023).
    """
    centers = cluster_centers(dataset, counts, generator)
    return dataset.normalise(torch.cat(nearest_images(dataset, centers)))


def kmeans_centers(
    dataset: Dataset, counts: Counts, generator: torch.Generator, features: Features
) -> Tensor:
    """The centres of clusters of the class; k-means of pixels (Lloyd, 1982)."""
    return dataset.normalise(torch.cat(cluster_centers(dataset, counts, generator)))


def herding(
    dataset: Dataset, counts: Counts, generator: torch.Generator, features: Features
) -> Tensor:
    """Real images whose features have a mean near the class's; see `herd`."""
    return _coreset(herd, dataset, counts, generator, features)


def kcenter(
    dataset: Dataset, counts: Counts, generator: torch.Generator, features: Features
) -> Tensor:
    """Real images with no image of the class far from all of them, by features; see `cover`."""
    return _coreset(cover, dataset, counts, generator, features)


def _constant(dataset: Dataset, counts: Counts, pixel: float) -> Tensor:
    require_images(dataset, [1] * len(counts))
    shape = (sum(counts), *dataset.image_shape)
    return dataset.normalise(torch.full(shape, float(pixel)))


def _coreset(
    choose: Coreset,
    dataset: Dataset,
    counts: Counts,
    generator: torch.Generator,
    features: Features,
) -> Tensor:
    require_images(dataset, counts)
    of_images, chosen = features(dataset, generator), []
    for index, count in enumerate(counts):
        images = dataset.class_images(index)
        chosen.append(images[choose(of_images(images), count)])
    return dataset.normalise(torch.cat(chosen))


INITIALISERS: dict[str, Initialiser] = {
    "noise": noise,
    "real": real,
    "black": black,
    "grey": grey,
    "white": white,
    "zeros": zeros,
    "mean": mean,
    "kmeans": kmeans,
    "kmeans_centers": kmeans_centers,
    "herding": herding,
    "kcenter": kcenter,
}
