"""What a run of `condense` draws at random, each by its name: nothing depends on what came before.

Shapes: K = independent sets, C = classes, R = real images of a class, image = (ch, h, w).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from condensation.augmentation import Augmentation, Draw
from condensation.class_batches import Ahead, LazyBatches
from condensation.datasets import Dataset, sample_class
from condensation.devices import to_device
from condensation.matching import draw_probes
from condensation.networks import Network, Theta, freeze_statistics, init_theta
from condensation.randomness import generator
from condensation.real_images import RealImages

Stream = tuple[str | int, ...]
"""The name of a draw."""

_Name = tuple[int, tuple[int, ...], int, Stream]  # set, classes, R, stream

BATCH_NORM_IMAGES = 16
"""Real images of each class whose statistics batch norms are frozen at; the published number."""


class Draws:
    """The draws of all sets; set k draws with the k-th seed."""

    def __init__(
        self, dataset: Dataset, seeds: range, augmentation: Draw | None, device: torch.device
    ) -> None:
        """Draw from a dataset.

        Args:
            dataset: The real images.
            seeds: One for each set.
            augmentation: Of real and synthetic images alike, or None.
            device: Where the images go.
        """
        self.seeds = seeds
        self._dataset = dataset
        self._images = RealImages(dataset, device)
        self._members = dataset.members()
        in_memory = device.type != "cuda"
        self._ahead = None
        if not (in_memory and self._images.on_device):
            self._ahead = Ahead(self._there if self._images.on_device else self._rows, device)
        self._thetas_ahead = None if in_memory else Ahead(self._thetas, device)
        self._augmentation = augmentation
        self.device = device

    def thetas(self, network: Network, iteration: int) -> list[Theta]:
        """Draw fresh parameters for the network of each set.

        On CUDA those of the next iteration are drawn meanwhile, by another thread.
        """
        name = (network, iteration)
        if self._thetas_ahead is None:
            return self._thetas(name)
        return self._thetas_ahead.take(name, (network, iteration + 1))

    def _thetas(self, name: tuple[Network, int]) -> list[Theta]:
        network, iteration = name
        return [
            init_theta(network, generator(seed, "theta", iteration), self.device)
            for seed in self.seeds
        ]

    def real(
        self,
        k: int,
        classes: Sequence[int],
        num_per_class: int,
        *stream: str | int,
        following: Stream | None = None,
    ) -> LazyBatches:
        """Draw real images of each of these classes for set k, normalised: (R, ch, h, w).

        Each class has a stream of its own, `(seed, *stream, class)`, so that classes can be drawn
        apart. Of a class that has fewer than `num_per_class`, all are taken.

        Args:
            k: The set.
            classes: Of which images are drawn.
            num_per_class: R.
            *stream: The name of the draw.
            following: That of the next draw, which is got ready meanwhile on CUDA, or if it takes a
                copy.
        """
        name = (k, tuple(classes), num_per_class, stream)
        if self._ahead is None:
            return LazyBatches(self._images.__getitem__, self._places(name))
        after = None if following is None else (*name[:3], following)
        make = self._images.__getitem__ if self._images.on_device else self._images.normalise
        return LazyBatches(make, self._ahead.take(name, after))

    def most_real(self, num_per_class: int) -> int:
        """Return how many real images of a class are drawn at most."""
        return min(num_per_class, max(len(members) for members in self._members))

    def _places(self, name: _Name) -> list[Tensor]:
        # Of each class, where its images are among all.
        k, classes, num_per_class, stream = name
        return [
            sample_class(
                self._members[c],
                min(num_per_class, len(self._members[c])),
                self._dataset.class_names[c],
                generator(self.seeds[k], *stream, c),
            )
            for c in classes
        ]

    def _there(self, name: _Name) -> list[Tensor]:
        # The same on the device, by one copy.
        places = self._places(name)
        return [*to_device(torch.cat(places), self.device).split([*map(len, places)])]

    def _rows(self, name: _Name) -> list[Tensor]:
        return [self._images.rows(places) for places in self._places(name)]

    def frozen(self, network: Network, theta: Theta, k: int, *place: int) -> Network:
        """Return the network of set k with the statistics of real images; else itself."""
        if not network.batch_norms:
            return network
        classes = range(self._dataset.num_classes)
        seen = self.real(k, classes, BATCH_NORM_IMAGES, "batch norm", *place)
        return freeze_statistics(network, theta, torch.cat([*seen]))

    def siamese(self, k: int, classes: Iterable[int], step: int) -> list[Augmentation | None]:
        """Draw one augmentation for all real and synthetic images of each class of set k."""
        size = (self._dataset.image_shape[1], self._dataset.image_shape[2])
        return [
            self._augmentation
            and self._augmentation(1, size, generator(self.seeds[k], "siamese", step, c))
            for c in classes
        ]

    def probes(self, theta: Theta, k: int, number: int, step: int) -> list[Theta]:
        """Draw the probes of set k, which all its classes share."""
        return draw_probes(theta, number, generator(self.seeds[k], "probes", step))
