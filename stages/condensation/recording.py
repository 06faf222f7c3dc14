"""A function of tensors as one CUDA graph: the host tells the device but once what it is to do.

A graph reads its arguments from memory of its own, where they are copied for each run.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

from condensation.devices import to_device
from condensation.memory import largest_blocks

Made = TypeVar("Made")

WARM_UPS = 2
"""Runs before the one that is recorded: what is compiled, chosen or allocated once is done then."""


class Recorded:
    """A function of tensors, recorded once for each shape of them; elsewhere than on CUDA, itself.

    It takes tensors in tuples, lists, dicts and what else `torch.utils._pytree` knows; what is
    given anything else, None excepted, is not recorded. It must not ask the device for a number,
    nor read the host's memory, and nothing is differentiated through it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Nothing is recorded yet."""
        self._function = function
        self._graphs: list[tuple[Any, _Graph]] = []

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function does, in memory of its own."""
        leaves, structure = tree_flatten(arguments)
        if not recordable(leaves):
            return self._function(*arguments)
        key = structure, [leaf if leaf is None else (leaf.shape, leaf.dtype) for leaf in leaves]
        for known, graph in self._graphs:
            if known == key:
                return graph(leaves)
        graph = _Graph(self._function, leaves, structure)
        self._graphs.append((key, graph))
        return graph(leaves)


def recordable(leaves: list[Any]) -> bool:
    """Whether there is something on CUDA among them, and nothing but tensors and None."""
    tensors = [leaf for leaf in leaves if leaf is not None]
    known = all(isinstance(leaf, Tensor) for leaf in tensors)
    return known and any(leaf.is_cuda for leaf in tensors)


def brought(leaves: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors on a device: those in the host's memory by one copy for each type of number.

    A copy of a few bytes takes as long as one of many: what is drawn for the augmentation of each
    class is five small tensors.
    """
    there = list(leaves)
    of_type: dict[torch.dtype, list[int]] = {}
    for place, leaf in enumerate(leaves):
        if leaf.device.type == "cpu":
            of_type.setdefault(leaf.dtype, []).append(place)
        else:
            there[place] = leaf.to(device)
    for places in of_type.values():
        flat = [leaves[place].flatten() for place in places]
        parts = to_device(torch.cat(flat), device).split([len(each) for each in flat])
        for place, part in zip(places, parts, strict=True):
            there[place] = part.view(leaves[place].shape)
    return there


def settled(record: Callable[[], Made]) -> Made:
    """Return what is recorded, once memory does not run out on the way.

    What had been done until it did, and was then done again by smaller blocks (`memory.py`), is in
    the recording, too: it would be done in vain each time. With the sizes that fit it is not.
    """
    while True:
        before = largest_blocks()
        made = record()
        if largest_blocks() == before:
            return made
        del made  # before the next, which needs the memory


class _Graph:
    """A recording for arguments of one shape."""

    def __init__(
        self, function: Callable[..., Any], leaves: list[Tensor | None], structure: TreeSpec
    ) -> None:
        (device, *_) = {leaf.device for leaf in leaves if leaf is not None and leaf.is_cuda}
        inputs = [
            leaf if leaf is None else torch.empty_like(leaf, device=device).copy_(leaf)
            for leaf in leaves
        ]
        self._inputs = [leaf for leaf in inputs if leaf is not None]
        arguments = tree_unflatten(inputs, structure)
        main, stream = torch.cuda.current_stream(device), _stream(device)
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function(*arguments)
        main.wait_stream(stream)

        def record() -> tuple[torch.cuda.CUDAGraph, Any]:
            graph = torch.cuda.CUDAGraph()
            # Other threads go on meanwhile: those that get the next batch ready.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                results = function(*arguments)
            return graph, results

        self._graph, self._results = settled(record)
        self._places: dict[torch.dtype, list[int]] = {}  # to copy those of a type at once
        for place, leaf in enumerate(self._inputs):
            self._places.setdefault(leaf.dtype, []).append(place)

    def __call__(self, leaves: list[Tensor | None]) -> Any:
        device = self._inputs[0].device
        given = brought([leaf for leaf in leaves if leaf is not None], device)
        for places in self._places.values():
            torch._foreach_copy_([self._inputs[i] for i in places], [given[i] for i in places])
        self._graph.replay()
        return tree_map_only(Tensor, torch.clone, self._results)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    # One for all: libraries keep memory for each stream that they have been used on.
    return torch.cuda.Stream(device)
