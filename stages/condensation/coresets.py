"""Greedy choices of a class's images by their features: all classes at once.

Shapes: n = number of images, F = features of an image, C = classes, N = images chosen.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Coreset = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""`(features (n, F), labels (n,), counts)` -> places of the chosen among the n, (N,) int64.

Of each class as many as `counts` says, class after class; it has so many images or more. Of equally
good images the first is taken.
"""


def herd(features: Tensor, labels: Tensor, counts: Sequence[int]) -> Tensor:
    """Choose so that the mean of the chosen is nearest the mean of the class, one after another.

    Herding (Welling, ICML 2009) in the form of Rebuffi et al. ("iCaRL", CVPR 2017): the k-th choice
    minimises |m - (x_1 + ... + x_k) / k|, with m the mean of the class.
    """
    members = _members(labels, len(counts))
    # With the mean of the class taken off, m is 0 and the sum of the chosen is to be short:
    # |s + x|^2 = |s|^2 + 2 <s, x> + |x|^2.
    centred = features - _means(features, members)[labels]
    lengths = centred.square().sum(1)
    total = centred.new_zeros(len(counts), centred.shape[1])
    chosen: list[Tensor] = []
    for _ in range(max(counts)):
        scores = lengths + 2 * total @ centred.T
        best = scores.where(members, torch.inf).argmin(1)
        members = members.scatter(1, best[:, None], False)
        total = total + centred[best]
        chosen.append(best)
    return _first(chosen, counts)


def cover(features: Tensor, labels: Tensor, counts: Sequence[int]) -> Tensor:
    """Choose so that no image of the class is far from a chosen one.

    The greedy k-center rule (Gonzalez, 1985; as a coreset: Sener and Savarese, ICLR 2018): each
    choice is the image farthest from its nearest chosen one. The first is the one nearest the mean.
    """
    members = _members(labels, len(counts))
    best = herd(features, labels, [1] * len(counts))
    gaps = features.new_full((len(features),), torch.inf)
    chosen = [best]
    for _ in range(max(counts) - 1):
        members = members.scatter(1, best[:, None], False)
        gaps = gaps.minimum((features - features[best][labels]).square().sum(1))
        best = gaps.where(members, -torch.inf).argmax(1)
        chosen.append(best)
    return _first(chosen, counts)


def _first(chosen: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    # Of the choices (C,), one after another, the first of each class: (N,). What a class chooses
    # when it has as many as it is to have, or no images left, is thrown away.
    by_class = torch.stack(list(chosen), 1)
    return torch.cat([row[:count] for row, count in zip(by_class, counts, strict=True)])


def _members(labels: Tensor, num_classes: int) -> Tensor:
    # (C, n) bool: whether an image is of a class
    return labels == torch.arange(num_classes, device=labels.device)[:, None]


def _means(features: Tensor, members: Tensor) -> Tensor:
    # (C, F)
    return members.to(features) @ features / members.sum(1, keepdim=True)
