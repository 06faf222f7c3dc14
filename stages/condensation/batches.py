"""What training sees, step by step: random orders of the images, each image augmented anew.

Augmenting many small batches at once costs little more than augmenting one, so the batches of some
steps are made together. What is random is drawn step by step all the same: the numbers do not
depend on how many steps are made ahead.

Shapes: K = networks that are trained side by side, B = images in a step, image = (ch, h, w).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from condensation.augmentation import Draw, apply_augmentation, joined
from condensation.devices import to_device
from condensation.real_images import RealImages

AHEAD = {"cpu": 512 * 28**2}
"""Numbers in the images that are augmented at once, at least, by type of device: 1.6 MB."""
AHEAD_ELSEWHERE = 2048 * 28**2
"""On an accelerator few images take as long as many; of 64 x 64, `sample_by_products` takes 1.2 GB
for these."""


class Batches:
    """The batches of one training, of K networks side by side.

    Every network has its own images and its own generator. An epoch is one pass over the images in
    a new random order; its last step takes what is left.

    Attributes:
        total: Steps in all.
    """

    def __init__(
        self,
        images: Sequence[Tensor | RealImages],
        labels: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        *,
        epochs: int,
        batch_size: int,
        augmentation: Draw | None,
    ) -> None:
        """Nothing is drawn yet.

        Args:
            images: Of each network, (N, ch, h, w), normalised; as many of each.
            labels: Of each network, (N,) int64.
            generators: Of each network: draws the order and the augmentation.
            epochs: Passes over the images.
            batch_size: Images in a step.
            augmentation: Drawn anew for each image in each epoch.
        """
        self._images, self._labels, self._generators = images, labels, generators
        self._size, self._augmentation = batch_size, augmentation
        self._number = len(labels[0])
        self._per_epoch = -(-self._number // batch_size)
        self.total = epochs * self._per_epoch
        self._first = 0  # the step before which the generators were as `_before` says
        self._before: list[Tensor] = []
        # Of each network, the order of the epoch that the step `_first` is in.
        self._orders = [torch.empty(0, dtype=torch.int64) for _ in generators]

    def steps(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (K, B, ch, h, w) and labels (K, B) of each step, from the step `first` on.

        Args:
            first: The steps before it are drawn and left out, from the last restored state on.
        """
        self._first = self._first if self._before else 0
        at = self._first
        while at < self.total:
            self._first = at
            self._before = [generator.get_state() for generator in self._generators]
            ahead = 1
            if self._per_epoch == 1:
                numbers = math.prod(self._images[0].shape)
                most = AHEAD.get(self._labels[0].device.type, AHEAD_ELSEWHERE)
                ahead = min(-(-most // numbers), self.total - at)
            made = [self._make(network, at, ahead) for network in range(len(self._generators))]
            images, labels = (torch.stack(parts, 1) for parts in zip(*made, strict=True))
            for offset in range(max(first - at, 0), ahead):
                yield images[offset], labels[offset]
            at += ahead

    def alike(self, first: int, most: int) -> int:
        """Return how many steps from `first` on, up to `most`, have as many images as it has."""
        size, in_last = self._size, self._number - (self._per_epoch - 1) * self._size
        sizes = [
            in_last if (step + 1) % self._per_epoch == 0 else size
            for step in range(first, min(first + most, self.total))
        ]
        return len(list(itertools.takewhile(sizes[0].__eq__, sizes)))

    def state(self) -> dict[str, Tensor]:
        """Return what `restore` needs so that the steps go on as they would have."""
        return {
            "drawn": torch.tensor(self._first),
            "orders": torch.stack(self._orders),
            "generators": torch.stack(self._before),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a state; what else is in the mapping does no harm."""
        self._first = int(tensors["drawn"])
        self._orders = list(tensors["orders"])
        # Clones: `set_state` reads from the beginning of the storage.
        self._before = [state.clone() for state in tensors["generators"]]
        for generator, state in zip(self._generators, self._before, strict=True):
            generator.set_state(state)

    def _make(self, network: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        # (count, B, ch, h, w) and (count, B): the next steps of one network.
        generator = self._generators[network]
        images, labels = self._images[network], self._labels[network]
        size = (images.shape[-2], images.shape[-1])
        chosen, draws = [], []
        for step in range(first, first + count):
            begin = step % self._per_epoch * self._size
            if begin == 0:
                self._orders[network] = torch.randperm(self._number, generator=generator)
            chosen.append(self._orders[network][begin : begin + self._size])
            if self._augmentation is not None:
                draws.append(self._augmentation(len(chosen[-1]), size, generator))
        places = torch.stack(chosen)
        there = to_device(places, labels.device)
        # Images in the host's memory are chosen there: back from CUDA, the host would wait for it.
        in_host = isinstance(images, RealImages) and not images.on_device
        batches = images[places if in_host else there]
        if draws:
            batches = apply_augmentation(batches, joined(draws))
        return batches, labels[there]
