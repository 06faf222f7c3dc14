"""Parts of the pairs (set, class) of a condensation, for processes that share the work.

Shapes: K = independent sets, C = classes, N = synthetic images of a set, class after class,
image = (ch, h, w).
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from condensation.matching import Matched


class Block(NamedTuple):
    """Pairs (set, class) that are matched together: each of these classes in each of these sets."""

    sets: range
    classes: range

    def rows(self, counts: Sequence[int]) -> slice:
        """Return where the images of the classes lie among those of a set.

        Args:
            counts: The number of images of each of all C classes.
        """
        starts = [0, *accumulate(counts)]
        return slice(starts[self.classes.start], starts[self.classes.stop])


def bounds(num_pairs: int, size: int) -> list[int]:
    """Return where each of `size` parts of the pairs begins, and the end: as even as can be."""
    return [num_pairs * part // size for part in range(size + 1)]


def deal(num_sets: int, num_classes: int, size: int) -> list[list[Block]]:
    """Deal the pairs of K sets and C classes out in `size` parts, set after set.

    Sets of which a part has the same classes are in one block.

    Raises:
        ValueError: There are fewer pairs than parts.
    """
    pairs = [(k, c) for k in range(num_sets) for c in range(num_classes)]
    if size > len(pairs):
        raise ValueError(
            f"condense.processes: got {size}, takes at most one for each class of each set "
            f"({len(pairs)})"
        )
    edges = bounds(len(pairs), size)
    return [_blocks(pairs[a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _blocks(pairs: list[tuple[int, int]]) -> list[Block]:
    # Of consecutive pairs.
    classes: dict[int, range] = {}
    for k, group in groupby(pairs, key=lambda pair: pair[0]):
        of_set = [c for _, c in group]
        classes[k] = range(of_set[0], of_set[-1] + 1)
    blocks = []
    for shared, group_of_sets in groupby(classes, key=lambda k: classes[k]):
        sets = list(group_of_sets)
        blocks.append(Block(range(sets[0], sets[-1] + 1), shared))
    return blocks


def assemble(
    parts: Iterable[tuple[Block, Matched]], images: Tensor, counts: Sequence[int]
) -> Matched:
    """Put what was matched of some blocks into its place; zeros elsewhere.

    Args:
        parts: Blocks, and what a matching step gave of each.
        images: (K, N, ch, h, w), all synthetic images.
        counts: The number of images of each class.
    """
    gradient = torch.zeros_like(images)
    figures = [images.new_zeros(len(images), len(counts)) for _ in Matched._fields[1:]]
    for block, part in parts:
        sets, classes = (slice(each.start, each.stop) for each in block)
        gradient[sets, block.rows(counts)] = part.gradient
        for whole, of_part in zip(figures, part[1:], strict=True):
            whole[sets, classes] = of_part
    return Matched(gradient, *figures)
