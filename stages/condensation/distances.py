"""Distances between two gradients. One function each, registered in `DISTANCES`.

A gradient has the shape of theta: a dict from parameter name to tensor. Every distance is 0 where
the two are equal and not zero, and is differentiable with respect to the first.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from condensation.networks import Theta

Distance = Callable[[Theta, Theta], Tensor]

_TINY = 1e-12
"""Smallest product of norms that is divided by: where a gradient is zero, 1 - cos is 1.

The published code adds 1e-6 to every product, which also damps the many rows of LeNet and MLP whose
gradients are that small; here the angle of every gradient that is not zero counts in full.
"""


def layerwise_cosine(synthetic: Theta, real: Theta) -> Tensor:
    """Sum over weights and over output rows of 1 - cos.

    Zhao, Mopuri and Bilen, ICLR 2021, equation 10: each weight tensor is reshaped to (out, -1); for
    every row i, 1 - <a_i, b_i> / (|a_i| |b_i|). Parameters of one dimension are skipped.

    Returns:
        (): from 0 to twice the number of rows.
    """
    return torch.stack(
        [
            _one_minus_cosine(synthetic[name].flatten(1), real[name].flatten(1)).sum()
            for name in synthetic
            if synthetic[name].ndim > 1
        ]
    ).sum()


def cosine(synthetic: Theta, real: Theta) -> Tensor:
    """1 - cos of the one angle between all parameters as vectors.

    Returns:
        (): from 0 to 2.
    """
    return _one_minus_cosine(_flat(synthetic), _flat(real))


def squared_euclidean(synthetic: Theta, real: Theta) -> Tensor:
    """Sum over all parameters of the squared difference.

    Returns:
        (): from 0.
    """
    return (_flat(synthetic) - _flat(real)).square().sum()


def _flat(gradient: Theta) -> Tensor:
    return torch.cat([value.flatten() for value in gradient.values()])


def _one_minus_cosine(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos along the last dimension."""
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    cosines: Tensor = (a * b).sum(-1) / norms.clamp_min(_TINY)
    return 1 - cosines


DISTANCES: dict[str, Distance] = {
    "layerwise_cosine": layerwise_cosine,
    "cosine": cosine,
    "squared_euclidean": squared_euclidean,
}
