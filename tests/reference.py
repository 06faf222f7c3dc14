"""Gradient matching from the paper's algorithm, one class after the other: the oracle of the tests.

Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, algorithm 1, with
plain reverse mode throughout: nothing here is shared with the code under test.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distance(name: str, synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """The three distances between two lists of parameter-shaped tensors, written as loops."""
    pairs = list(zip(synthetic, real, strict=True))
    if name == "squared_euclidean":
        return torch.stack([((a - b) ** 2).sum() for a, b in pairs]).sum()
    if name == "cosine":
        dot = torch.stack([(a * b).sum() for a, b in pairs]).sum()
        squares = [torch.stack([(g**2).sum() for g in side]).sum() for side in (synthetic, real)]
        return 1 - dot / (squares[0] * squares[1]).sqrt()
    assert name == "layerwise_cosine"
    total = torch.zeros((), dtype=torch.float64)
    for a, b in pairs:
        if a.ndim > 1:
            for row_a, row_b in zip(a.flatten(1), b.flatten(1), strict=True):
                if row_a.norm() * row_b.norm() > 0:
                    total = total + 1 - (row_a @ row_b) / (row_a.norm() * row_b.norm())
                else:
                    total = total + 1
    return total


def matching_terms(
    module: nn.Module,
    synthetic: Tensor,
    real: Tensor,
    class_index: int,
    distance_name: str,
    probes: Sequence[Sequence[Tensor]],
) -> tuple[Tensor, Tensor | None]:
    """D of one class at the module's own parameters, and with probes the term `hvp`."""
    parameters = list(module.parameters())

    def gradient(images: Tensor) -> Sequence[Tensor]:
        labels = torch.full((len(images),), class_index)
        loss = F.cross_entropy(module(images), labels)
        return torch.autograd.grad(loss, parameters, create_graph=True)

    def product(gradient: Sequence[Tensor], probe: Sequence[Tensor]) -> Sequence[Tensor]:
        slope = torch.stack([(g * v).sum() for g, v in zip(gradient, probe, strict=True)]).sum()
        return torch.autograd.grad(slope, parameters, create_graph=True, materialize_grads=True)

    ours, theirs = gradient(synthetic), gradient(real)
    loss = distance(distance_name, ours, [g.detach() for g in theirs])
    terms = [
        distance(distance_name, product(ours, probe), [h.detach() for h in product(theirs, probe)])
        for probe in probes
    ]
    return loss, torch.stack(terms).mean() if terms else None


def matching_step(
    module: nn.Module,
    synthetic: Sequence[Tensor] | Tensor,
    real: Tensor,
    distance_name: str,
    weight: float = 0.0,
    probes: Sequence[Sequence[Tensor]] = (),
) -> tuple[Tensor, Tensor]:
    """The image gradient (N, ch, h, w), class after class, and D of each class (C,), of one set.

    The image gradient of the term is made `weight` times as long as that of D.
    """
    gradients, losses = [], []
    for index in range(len(synthetic)):
        images = synthetic[index].clone().requires_grad_()
        loss, term = matching_terms(module, images, real[index], index, distance_name, probes)
        (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
        if term is not None:
            (of_term,) = torch.autograd.grad(term, images)
            gradient = gradient + weight * gradient.norm() / of_term.norm() * of_term
        gradients.append(gradient)
        losses.append(loss.detach())
    return torch.cat(gradients), torch.stack(losses)
