"""Batches of real images of several classes, and what another thread makes ahead.

Where all images lie on the device, a batch is made when its class is matched: those of all classes
together, as floats, may be larger than the dataset; ahead, on CUDA, are the places of its images.
Otherwise the rows of the next draw are taken from the host's memory and copied to the device while
it works on this one.

Shapes: R = images of a class in a batch, image = (ch, h, w).
"""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, overload

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node, tree_leaves

Name = TypeVar("Name", bound=Hashable)
Made = TypeVar("Made")


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


# So that a CUDA graph can be given new ones (`recording.py`).
register_pytree_node(
    LazyBatches,
    lambda batches: ([*batches._of_classes], batches._make),
    lambda of_classes, make: LazyBatches(make, [*of_classes]),
)


class Ahead(Generic[Name, Made]):
    """Makes what will be asked for next while the caller works."""

    def __init__(self, make: Callable[[Name], Made], device: torch.device) -> None:
        """Make things by `make(name)` in a thread of its own, and on a CUDA stream of its own.

        What is made is a tensor, or lists and dicts of them.
        """
        self._make = make
        self._device = device
        self._stream = None
        self._executor = ThreadPoolExecutor(1)
        if device.type == "cuda":
            # Of the streams of high priority, none of which is recorded.
            self._stream = torch.cuda.Stream(device, priority=-1)
            self._executor = ThreadPoolExecutor(
                1, initializer=torch.cuda.set_device, initargs=(self._stream.device,)
            )
        self._begun: dict[Name, Future[tuple[Made, torch.cuda.Event | None]]] = {}

    def take(self, name: Name, following: Name | None) -> Made:
        """Return what is made of a name, and begin with that of the following one."""
        begun = self._begun.pop(name, None) or self._executor.submit(self._run, name)
        made, copied = begun.result()
        if following is not None and following not in self._begun:
            self._begun[following] = self._executor.submit(self._run, following)
        if copied is not None:
            # The device waits for the copies, not the host; and their memory is not given to
            # another tensor before the work on them is done.
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for tensor in tree_leaves(made):
                tensor.record_stream(current)
        return made

    def _run(self, name: Name) -> tuple[Made, torch.cuda.Event | None]:
        if self._stream is None:
            return self._make(name), None
        with torch.cuda.stream(self._stream):
            made = self._make(name)
            return made, self._stream.record_event()
