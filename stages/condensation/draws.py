"""What a run of `condense` draws at random, each by its name: nothing depends on what came before.

Shapes: K = independent sets, C = classes, R = real images of a class, image = (ch, h, w).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from condensation.augmentation import Augmentation, Draw
from condensation.datasets import Dataset, sample_class
from condensation.matching import draw_probes
from condensation.networks import Network, Theta, freeze_statistics, init_theta
from condensation.randomness import generator

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
        self._by_class = [dataset.class_images(c) for c in range(dataset.num_classes)]
        self._augmentation = augmentation
        self._device = device

    def thetas(self, network: Network, iteration: int) -> list[Theta]:
        """Draw fresh parameters for the network of each set."""
        return [
            init_theta(network, generator(seed, "theta", iteration), self._device)
            for seed in self.seeds
        ]

    def real(
        self, k: int, classes: Iterable[int], num_per_class: int, *stream: str | int
    ) -> list[Tensor]:
        """Draw real images of each of these classes for set k, normalised: (R, ch, h, w).

        Each class has a stream of its own, `(seed, *stream, class)`, so that classes can be drawn
        apart. Of a class that has fewer than `num_per_class`, all are taken.
        """
        drawn = [
            sample_class(
                self._by_class[c],
                min(num_per_class, len(self._by_class[c])),
                self._dataset.class_names[c],
                generator(self.seeds[k], *stream, c),
            )
            for c in classes
        ]
        normalised = self._dataset.normalise(torch.cat(drawn).to(self._device))
        return [*normalised.split([len(images) for images in drawn])]

    def frozen(self, network: Network, theta: Theta, k: int, *place: int) -> Network:
        """Return the network of set k with the statistics of real images; else itself."""
        if not network.batch_norms:
            return network
        classes = range(self._dataset.num_classes)
        seen = self.real(k, classes, BATCH_NORM_IMAGES, "batch norm", *place)
        return freeze_statistics(network, theta, torch.cat(seen))

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
