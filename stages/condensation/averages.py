"""Initial images that are averages of real ones, or the real ones next to them.

Shapes: S = synthetic images of a class, n = real images of a class, image = (ch, h, w).
"""

import warnings
from collections.abc import Sequence

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from condensation.datasets import Dataset, require_images, sample_class

STARTS = 4
"""Times that k-means begins anew in a class; the tightest clusters are taken."""


def part_means(dataset: Dataset, counts: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Return the mean of each of S random parts of each class, equal in size but for one image.

    Args:
        dataset: The real images.
        counts: S of each class.
        generator: Draws the parts.

    Returns:
        Of each class (S, ch, h, w) float32, in pixel values from 0 to 255.

    Raises:
        ValueError: A class has fewer images than parts.
    """
    require_images(dataset, counts)
    means = []
    for index, (name, count) in enumerate(zip(dataset.class_names, counts, strict=True)):
        images = dataset.class_images(index)
        shuffled = sample_class(images, len(images), name, generator)
        # Float64: a sum of thousands of pixels is then exact, the same on every machine.
        parts = [part.double().mean(0) for part in shuffled.tensor_split(count)]
        means.append(torch.stack(parts).float())
    return means


def cluster_centers(
    dataset: Dataset, counts: Sequence[int], generator: torch.Generator
) -> list[Tensor]:
    """Return the centres of S clusters of each class, those of the largest clusters first.

    k-means (Lloyd, "Least Squares Quantization in PCM", 1982) of the pixels, begun by k-means++
    (Arthur and Vassilvitskii, SODA 2007), the best of `STARTS`. Where a class has fewer than S
    different images, centres are repeated.

    Args:
        dataset: The real images.
        counts: S of each class.
        generator: Draws where k-means begins.

    Returns:
        Of each class (S, ch, h, w) float32, in pixel values from 0 to 255.

    Raises:
        ValueError: A class has fewer than S images.
    """
    require_images(dataset, counts)
    return [
        _centers_of_class(dataset.class_images(index), count, generator)
        for index, count in enumerate(counts)
    ]


def nearest_images(dataset: Dataset, centers: Sequence[Tensor]) -> list[Tensor]:
    """Return the real image nearest each centre, no image twice; earlier centres choose first.

    Args:
        dataset: The real images.
        centers: Of each class (S, ch, h, w), in pixel values from 0 to 255; the class has S images.

    Returns:
        Of each class (S, ch, h, w) uint8.
    """
    chosen = []
    for index, of_class in enumerate(centers):
        members = dataset.class_images(index)
        gaps = torch.cdist(of_class.flatten(1).double(), members.flatten(1).double())
        places: list[int] = []
        for row in gaps:
            row[places] = torch.inf
            places.append(int(row.argmin()))
        chosen.append(members[places])
    return chosen


def _centers_of_class(images: Tensor, num_centers: int, generator: torch.Generator) -> Tensor:
    # (n, ch, h, w) uint8 -> (num_centers, ch, h, w) float32
    seed = int(torch.randint(2**31, (), generator=generator))
    pixels = images.flatten(1).double()
    # One thread: several add up in the order in which they come to an end.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters
        found = KMeans(num_centers, n_init=STARTS, random_state=seed).fit(pixels.numpy())
    centers: Tensor = torch.from_numpy(found.cluster_centers_)
    sizes = torch.from_numpy(found.labels_).long().bincount(minlength=num_centers)
    largest_first = sizes.argsort(descending=True, stable=True)
    # The centres are computed with the mean taken off and put back, which leaves rounding behind.
    ordered = centers[largest_first].clamp(0, 255).float()
    return ordered.view(-1, *images.shape[1:])
