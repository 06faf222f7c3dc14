"""Greedy choices of a class's images by their features.

Shapes: n = images of the class, F = features of an image, S = images chosen.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Coreset = Callable[[Tensor, int], Tensor]
"""`(features (n, F), S)` -> places of the chosen among the n, (S,) int64; S is n at most.

Of equally good images the first is taken.
"""


def herd(features: Tensor, num_chosen: int) -> Tensor:
    """Choose so that the mean of the chosen is nearest the mean of the class, one after another.

    Herding (Welling, ICML 2009) in the form of Rebuffi et al. ("iCaRL", CVPR 2017): the k-th choice
    minimises |m - (x_1 + ... + x_k) / k|, with m the mean of the class.
    """
    # With the mean of the class taken off, m is 0 and the sum of the chosen is to be short:
    # |s + x|^2 = |s|^2 + 2 <s, x> + |x|^2.
    centred = features - features.mean(0)
    scores = centred.square().sum(1)
    chosen: list[int] = []
    for _ in range(num_chosen):
        best = int(scores.argmin())
        chosen.append(best)
        scores = scores + 2 * centred @ centred[best]
        scores[best] = torch.inf
    return torch.tensor(chosen)


def cover(features: Tensor, num_chosen: int) -> Tensor:
    """Choose so that no image of the class is far from a chosen one.

    The greedy k-center rule (Gonzalez, 1985; as a coreset: Sener and Savarese, ICLR 2018): each
    choice is the image farthest from its nearest chosen one. The rule leaves the first one free;
    here it is the one nearest the mean, which is what `herd` begins with.
    """
    chosen = herd(features, 1).tolist()
    gaps = features.new_full((len(features),), torch.inf)
    for _ in range(num_chosen - 1):
        gaps = gaps.minimum((features - features[chosen[-1]]).square().sum(1))
        gaps[chosen] = -torch.inf
        chosen.append(int(gaps.argmax()))
    return torch.tensor(chosen)
