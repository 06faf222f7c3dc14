"""Gradient matching from the paper's algorithm, one class after the other, in plain reverse mode.

Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, algorithm 1, and
the forms of order 2. Nothing here is shared with the code of the stages: it is the oracle of the
tests and the baseline of the benchmark.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Tensors = Sequence[Tensor]


def distance(name: str, synthetic: Tensors, real: Tensors) -> Tensor:
    """The three distances between two lists of parameter-shaped tensors, written as loops."""
    pairs = list(zip(synthetic, real, strict=True))
    if name == "squared_euclidean":
        return torch.stack([((a - b) ** 2).sum() for a, b in pairs]).sum()
    if name == "cosine":
        squares = [torch.stack([(g**2).sum() for g in side]).sum() for side in (synthetic, real)]
        return 1 - inner(synthetic, real) / (squares[0] * squares[1]).sqrt()
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


def inner(a: Tensors, b: Tensors) -> Tensor:
    """The sum over all parameters of the products."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def constants(values: Tensors) -> list[Tensor]:
    """The same numbers, not differentiated through."""
    return [value.detach() for value in values]


def loss_gradient(
    module: nn.Module, at: Mapping[str, Tensor], images: Tensor, index: int, again: bool = True
) -> Tensors:
    """Of the mean cross-entropy of one class, by the parameters; `again`: differentiable again."""
    labels = torch.full((len(images),), index, device=images.device)
    loss = F.cross_entropy(functional_call(module, dict(at), (images,)), labels)
    return torch.autograd.grad(loss, list(at.values()), create_graph=again)


def hessian_product(at: Mapping[str, Tensor], gradient: Tensors, vector: Tensors) -> Tensors:
    """H v as the derivative of <g, v>, differentiable again by what g and v come from."""
    slope, parameters = inner(gradient, vector), list(at.values())
    return torch.autograd.grad(slope, parameters, create_graph=True, materialize_grads=True)


def gauss_newton_form(
    module: nn.Module, at: Mapping[str, Tensor], images: Tensor, vector: Tensors
) -> Tensor:
    """The form v' G v, the mean of (J v)' (diag(p) - p p') (J v), J = d logits / d theta."""
    logits = functional_call(module, dict(at), (images,))
    direction = torch.zeros_like(logits, requires_grad=True)
    pulled = torch.autograd.grad(logits, list(at.values()), direction, create_graph=True)
    (pushed,) = torch.autograd.grad(inner(pulled, vector), direction, create_graph=True)
    p = logits.softmax(1).detach()
    of_images: Tensor = (p * pushed**2).sum(1) - (p * pushed).sum(1) ** 2
    return of_images.mean()


def matching_terms(
    module: nn.Module,
    synthetic: Tensor,
    real: Tensor,
    index: int,
    name: str,
    form: str | None = None,
    probes: Sequence[Tensors] = (),
) -> tuple[Tensor, Tensor | None]:
    """D of one class at the module's own parameters, and the term of a form of order 2."""
    at = dict(module.named_parameters())
    at_real = {key: p.detach().clone().requires_grad_() for key, p in at.items()}
    ours = loss_gradient(module, at, synthetic, index)
    theirs = loss_gradient(module, at_real, real, index, again=form in ("hvp", "quadratic"))
    loss = distance(name, ours, constants(theirs))
    if form is None:
        return loss, None
    if form == "hvp":
        products = [
            (hessian_product(at, ours, v), hessian_product(at_real, theirs, v)) for v in probes
        ]
        terms = [distance(name, one, constants(other)) for one, other in products]
        return loss, torch.stack(terms).mean()
    if form == "lookahead":
        step = zip(at.items(), theirs, strict=True)
        ahead = {key: (p - 0.01 * g).detach().requires_grad_() for (key, p), g in step}
        real_ahead = loss_gradient(module, ahead, real, index, again=False)
        return loss, distance(name, loss_gradient(module, ahead, synthetic, index), real_ahead)
    gap = [b.detach() - a for a, b in zip(ours, theirs, strict=True)]
    if form == "quadratic":
        return loss, inner(gap, hessian_product(at_real, theirs, gap))
    assert form == "ggn"
    return loss, gauss_newton_form(module, at_real, real, gap)


def matching_step(
    module: nn.Module,
    synthetic: Tensors,
    real: Tensors,
    name: str,
    form: str | None = None,
    weight: float = 0.0,
    probes: Sequence[Tensors] = (),
) -> tuple[Tensor, Tensor]:
    """The image gradient (N, ch, h, w) and D of each class (C,), of the images of each class.

    The image gradient of the term is made `weight` times as long as that of D.
    """
    gradients, losses = [], []
    for index, (of_class, batch) in enumerate(zip(synthetic, real, strict=True)):
        images = of_class.clone().requires_grad_()
        loss, term = matching_terms(module, images, batch, index, name, form, probes)
        (gradient,) = torch.autograd.grad(loss, images, retain_graph=term is not None)
        if term is not None:
            (of_term,) = torch.autograd.grad(term, images)
            gradient = gradient + weight * gradient.norm() / of_term.norm() * of_term
        gradients.append(gradient)
        losses.append(loss.detach())
    return torch.cat(gradients), torch.stack(losses)


def train(
    module: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch_size: int, rate: float
) -> None:
    """SGD on the mean cross-entropy, the images in a new random order in each epoch."""
    optimiser = torch.optim.SGD(module.parameters(), lr=rate)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), device=images.device).split(batch_size):
            optimiser.zero_grad()
            F.cross_entropy(module(images[chosen]), labels[chosen]).backward()
            optimiser.step()
