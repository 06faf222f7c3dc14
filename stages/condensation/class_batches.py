"""Batches of real images of every class, from named draws: made when they are used, or ahead.

Where the images lie on the device, a batch is made when its class is matched: those of all classes
together, as floats, may be larger than the images. Otherwise the rows of the next draw are taken
from the host's memory and copied by another thread while the device works on this one.

Shapes: K = independent sets, C = classes, R = images of a class in a batch, image = (ch, h, w).
"""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import overload

import torch
from torch import Tensor

from condensation.datasets import sample_members
from condensation.real_images import RealImages

Stream = tuple[str | int, ...]
"""The name of a draw."""

Rows = list[list[Tensor]]
"""Of each set and class, (R, ch, h, w) uint8."""


class LazyBatches(Sequence[Tensor]):
    """Of each class a batch (R, ch, h, w), made anew each time it is asked for."""

    def __init__(self, make: Callable[[int], Tensor], num_classes: int) -> None:
        """Make the batch of class c by `make(c)`."""
        self._make = make
        self._num_classes = num_classes

    def __len__(self) -> int:
        """C."""
        return self._num_classes

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Return the batch of a class, or of several.

        Raises:
            IndexError: There is no such class.
        """
        if isinstance(index, slice):
            return [self[c] for c in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._make(index)


class ClassBatches:
    """Draws batches of every class, for each of the independent sets."""

    def __init__(
        self,
        images: RealImages,
        members: Sequence[Tensor],
        seeds: Sequence[int],
        num_per_class: int,
    ) -> None:
        """Draw from these images.

        Args:
            images: All real images.
            members: Of each class, the places of its images (n,).
            seeds: That of each set.
            num_per_class: R; of a class that has fewer, all of them.
        """
        self._images = images
        self._members = members
        self._seeds = seeds
        self._num_per_class = num_per_class
        self._ahead = None if images.on_device else Ahead(self._rows, images.device)

    def draw(self, *stream: str | int, following: Stream | None = None) -> list[LazyBatches]:
        """Return the batches of a draw, normalised, for each set.

        Args:
            *stream: The name of the draw.
            following: That of the next one, which is got ready meanwhile if it takes a copy.
        """
        if self._ahead is not None:
            rows = self._ahead.take(stream, following)
            return [self._lazy(self._images.normalise, of_set) for of_set in rows]
        return [self._lazy(self._images.__getitem__, of_set) for of_set in self._places(stream)]

    def _lazy(self, make: Callable[[Tensor], Tensor], of_set: Sequence[Tensor]) -> LazyBatches:
        return LazyBatches(lambda c: make(of_set[c]), len(of_set))

    def _places(self, stream: Stream) -> list[list[Tensor]]:
        return [
            sample_members(self._members, self._num_per_class, seed, *stream)
            for seed in self._seeds
        ]

    def _rows(self, stream: Stream) -> Rows:
        return [[self._images.rows(each) for each in places] for places in self._places(stream)]


class Ahead:
    """Makes what will be asked for next while the caller works."""

    def __init__(self, make: Callable[[Stream], Rows], device: torch.device) -> None:
        """Make things by `make(name)` in a thread of its own, and on a CUDA stream of its own."""
        self._make = make
        self._executor = ThreadPoolExecutor(1)
        self._device = device
        self._cuda = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._begun: dict[Hashable, Future[tuple[Rows, torch.cuda.Event | None]]] = {}

    def take(self, name: Stream, following: Stream | None) -> Rows:
        """Return what is made of a name, and begin with that of the following one.

        What was begun and is not asked for next is thrown away.
        """
        begun = self._begun.pop(name, None) or self._executor.submit(self._run, name)
        rows, copied = begun.result()
        self._begun.clear()
        if following is not None:
            self._begun[following] = self._executor.submit(self._run, following)
        if copied is not None:
            # The device waits for the copies, not the host; and their memory is not given to
            # another before this stream is done with it.
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for tensor in [tensor for of_set in rows for tensor in of_set]:
                tensor.record_stream(current)
        return rows

    def _run(self, name: Stream) -> tuple[Rows, torch.cuda.Event | None]:
        if self._cuda is None:
            return self._make(name), None
        with torch.cuda.stream(self._cuda):
            rows = self._make(name)
            return rows, self._cuda.record_event()
