"""Greedy choices of a class's images by their features: all classes at once.

Shapes: N = number of images, F = features of an image, C = classes, S = images chosen of a class.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Coreset = Callable[[Tensor, Tensor, int, int], Tensor]
"""`(features (N, F), labels (N,), C, S)` -> places of the chosen among the N, (C, S) int64.

Every class has S images or more. Of equally good images the first is taken.
"""


def herd(features: Tensor, labels: Tensor, num_classes: int, num_chosen: int) -> Tensor:
    """Choose so that the mean of the chosen is nearest the mean of the class, one after another.

    Herding (Welling, ICML 2009) in the form of Rebuffi et al. ("iCaRL", CVPR 2017): the k-th choice
    minimises |m - (x_1 + ... + x_k) / k|, with m the mean of the class.
    """
    members = _members(labels, num_classes)
    # With the mean of the class taken off, m is 0 and the sum of the chosen is to be short:
    # |s + x|^2 = |s|^2 + 2 <s, x> + |x|^2.
    centred = features - _means(features, members)[labels]
    lengths = centred.square().sum(1)
    total = centred.new_zeros(num_classes, centred.shape[1])
    chosen: list[Tensor] = []
    for _ in range(num_chosen):
        scores = lengths + 2 * total @ centred.T
        best = scores.where(members, torch.inf).argmin(1)
        members = members.scatter(1, best[:, None], False)
        total = total + centred[best]
        chosen.append(best)
    return torch.stack(chosen, 1)


def cover(features: Tensor, labels: Tensor, num_classes: int, num_chosen: int) -> Tensor:
    """Choose so that no image of the class is far from a chosen one.

    The greedy k-center rule (Gonzalez, 1985; as a coreset: Sener and Savarese, ICLR 2018): each
    choice is the image farthest from its nearest chosen one. The first is the one nearest the mean.
    """
    members = _members(labels, num_classes)
    best = herd(features, labels, num_classes, 1)[:, 0]
    gaps = features.new_full((len(features),), torch.inf)
    chosen = [best]
    for _ in range(num_chosen - 1):
        members = members.scatter(1, best[:, None], False)
        gaps = gaps.minimum((features - features[best][labels]).square().sum(1))
        best = gaps.where(members, -torch.inf).argmax(1)
        chosen.append(best)
    return torch.stack(chosen, 1)


def _members(labels: Tensor, num_classes: int) -> Tensor:
    # (C, N) bool: whether an image is of a class
    return labels == torch.arange(num_classes, device=labels.device)[:, None]


def _means(features: Tensor, members: Tensor) -> Tensor:
    # (C, F)
    return members.to(features) @ features / members.sum(1, keepdim=True)
