"""Batches of real images of several classes: made when they are used, or ahead by another thread.

Where all images lie on the device, a batch is made when its class is matched: those of all classes
together, as floats, may be larger than the dataset. Otherwise the rows of the next draw are taken
from the host's memory and copied to the device while it works on this one.

Shapes: R = images of a class in a batch, image = (ch, h, w).
"""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, overload

import torch
from torch import Tensor

Name = TypeVar("Name", bound=Hashable)

Rows = list[Tensor]
"""Of each class, (R, ch, h, w) uint8."""


class LazyBatches(Sequence[Tensor]):
    """Of each class a batch (R, ch, h, w), made anew each time it is asked for."""

    def __init__(self, make: Callable[[Tensor], Tensor], of_classes: Sequence[Tensor]) -> None:
        """Make the batch of a class by `make` of what is known of it."""
        self._make = make
        self._of_classes = of_classes

    def __len__(self) -> int:
        """The number of classes."""
        return len(self._of_classes)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Return the batch of a class, or of several."""
        if isinstance(index, slice):
            return [self._make(each) for each in self._of_classes[index]]
        return self._make(self._of_classes[index])


class Ahead(Generic[Name]):
    """Makes what will be asked for next while the caller works."""

    def __init__(self, make: Callable[[Name], Rows], device: torch.device) -> None:
        """Make things by `make(name)` in a thread of its own, and on a CUDA stream of its own."""
        self._make = make
        self._device = device
        self._executor = ThreadPoolExecutor(1)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._begun: dict[Name, Future[tuple[Rows, torch.cuda.Event | None]]] = {}

    def take(self, name: Name, following: Name | None) -> Rows:
        """Return what is made of a name, and begin with that of the following one."""
        begun = self._begun.pop(name, None) or self._executor.submit(self._run, name)
        rows, copied = begun.result()
        if following is not None and following not in self._begun:
            self._begun[following] = self._executor.submit(self._run, following)
        if copied is not None:
            # The device waits for the copies, not the host; and their memory is not given to
            # another tensor before the work on them is done.
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for tensor in rows:
                tensor.record_stream(current)
        return rows

    def _run(self, name: Name) -> tuple[Rows, torch.cuda.Event | None]:
        if self._stream is None:
            return self._make(name), None
        with torch.cuda.stream(self._stream):
            rows = self._make(name)
            return rows, self._stream.record_event()
