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
    """The form v' G v, the mean of (J v)' (diag(p) - p p') (J v), J = d logits / d theta.

    `at` ends with the parameters that v is about.
    """
    logits = functional_call(module, dict(at), (images,))
    direction = torch.zeros_like(logits, requires_grad=True)
    parameters = list(at.values())[-len(vector) :]
    pulled = torch.autograd.grad(logits, parameters, direction, create_graph=True)
    (pushed,) = torch.autograd.grad(inner(pulled, vector), direction, create_graph=True)
    p = logits.softmax(1).detach()
    of_images: Tensor = (p * pushed**2).sum(1) - (p * pushed).sum(1) ** 2
    return of_images.mean()


def gauss_newton_rows(module: nn.Module, at: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """A (rows, P) with A' A = G: (diag(sqrt p) - sqrt(p) p') J of each image, as the p sum to 1."""
    logits, rows = functional_call(module, dict(at), (images,)), []
    for of_image, p in zip(logits, logits.softmax(1).detach(), strict=True):
        slopes = [torch.autograd.grad(z, list(at.values()), retain_graph=True) for z in of_image]
        jacobian = torch.stack([torch.cat([part.flatten() for part in slope]) for slope in slopes])
        rows.append(p.sqrt()[:, None] * (jacobian - p @ jacobian))
    of_images: Tensor = torch.cat(rows) / len(images) ** 0.5
    return of_images


def matching_terms(
    module: nn.Module,
    synthetic: Tensor,
    real: Tensor,
    index: int,
    name: str,
    form: str | None = None,
    probes: Sequence[Tensors] = (),
    kept: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """D of one class at the module's own parameters, and the term of a form of order 2.

    The term is about the last `kept` tensors of the parameters; with 0, about all.
    """
    at = dict(module.named_parameters())
    at_real = {key: p.detach().clone().requires_grad_() for key, p in at.items()}
    ours = loss_gradient(module, at, synthetic, index)
    theirs = loss_gradient(module, at_real, real, index, again=form in ("hvp", "quadratic"))
    loss = distance(name, ours, constants(theirs))
    if form is None:
        return loss, None
    ours, theirs = ours[-kept:], theirs[-kept:]
    part, real_part = (dict(list(each.items())[-kept:]) for each in (at, at_real))
    vectors = [probe[-kept:] for probe in probes]
    if form == "hvp":
        products = [
            (hessian_product(part, ours, v), hessian_product(real_part, theirs, v)) for v in vectors
        ]
        terms = [distance(name, one, constants(other)) for one, other in products]
        return loss, torch.stack(terms).mean()
    if form == "lookahead":
        step = zip(part.items(), theirs, strict=True)
        moved = {key: (p - 0.01 * g).detach().requires_grad_() for (key, p), g in step}
        ahead = {**at, **moved}
        real_ahead = loss_gradient(module, ahead, real, index, again=False)[-kept:]
        return loss, distance(
            name, loss_gradient(module, ahead, synthetic, index)[-kept:], real_ahead
        )
    gap = [b.detach() - a for a, b in zip(ours, theirs, strict=True)]
    if form == "quadratic":
        return loss, inner(gap, hessian_product(real_part, theirs, gap))
    if form == "ggn":
        return loss, gauss_newton_form(module, at_real, real, gap)
    rows = gauss_newton_rows(module, at_real, real)
    rows = rows[:, -sum(each.numel() for each in gap) :]
    flat, target = (torch.cat([each.flatten() for each in side]) for side in (gap, theirs))
    if form == "ggn_diagonal":
        signs = torch.stack([torch.cat([each.flatten() for each in v]) for v in vectors])
        diagonal = ((signs * (signs @ rows.T @ rows)).sum(0) / signs.square().sum(0)).abs()
        return loss, (flat.square() / (diagonal + diagonal.mean())).sum()
    assert form == "ggn_inverse"
    damping = 0.1 * (rows @ target).square().sum() / target.square().sum()
    # (A' A + d)^-1 = (1 - A' (A A' + d)^-1 A) / d
    small = rows @ rows.T + damping * torch.eye(len(rows), dtype=rows.dtype)
    solved = torch.linalg.solve(small, rows @ flat)
    return loss, (flat.square().sum() - (rows @ flat) @ solved) / damping


def matching_step(
    module: nn.Module,
    synthetic: Tensors,
    real: Tensors,
    name: str,
    form: str | None = None,
    weight: float = 0.0,
    probes: Sequence[Tensors] = (),
    kept: int = 0,
) -> tuple[Tensor, Tensor]:
    """The image gradient (N, ch, h, w) and D of each class (C,), of the images of each class.

    The image gradient of the term is made `weight` times as long as that of D.
    """
    gradients, losses = [], []
    for index, (of_class, batch) in enumerate(zip(synthetic, real, strict=True)):
        images = of_class.clone().requires_grad_()
        loss, term = matching_terms(module, images, batch, index, name, form, probes, kept)
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
