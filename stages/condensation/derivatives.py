"""Derivatives of the classification loss with respect to the network's parameters.

Notation (see Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021):
    l(theta; X, y) = mean cross-entropy;  g = dl/dtheta;  H = d2l/dtheta2.
Shapes: B = batch, image = (ch, h, w); a gradient has the shape of theta.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from condensation.compiled_gradients import compiled_gradient, factor_of, filled
from condensation.fused import has_kernels
from condensation.memory import with_less_memory
from condensation.networks import Network, NetworkFunction, Theta
from condensation.precisions import lowered

Parts = Sequence[Tensor]
"""Tensors of the shapes of theta, in its order."""


def classification_loss(
    theta: Theta, network: NetworkFunction, images: Tensor, labels: Tensor
) -> Tensor:
    """Return the mean cross-entropy l(theta; images, labels), ()."""
    return F.cross_entropy(network(theta, images), labels)


def loss_gradient(theta: Theta, network: NetworkFunction, images: Tensor, labels: Tensor) -> Theta:
    """Return g(theta; images, labels), differentiable with respect to theta and the images."""
    gradient: Theta = grad(classification_loss)(theta, network, images, labels)
    return gradient


def hessian_vector_product(
    theta: Theta, network: NetworkFunction, images: Tensor, labels: Tensor, vector: Theta
) -> Theta:
    """Return H(theta; images, labels) v, differentiable with respect to the images.

    Reverse over reverse: the gradient of <g, v>; H itself is never formed (Pearlmutter, "Fast Exact
    Multiplication by the Hessian", 1994). Forward over reverse (`torch.func.jvp` of `grad`) takes a
    third longer on the CPU, where its instance norm falls apart into small operators (24 images of
    a ConvNet, one thread: 0.42 s against 0.32 s, of which the gradient is a part in either case),
    and cannot be used by threads: PyTorch keeps its level in one variable for the whole process.
    """

    def slope(at: Theta) -> Tensor:
        return inner_product(loss_gradient(at, network, images, labels), vector)

    product: Theta = grad(slope)(theta)
    return product


def inner_product(a: Theta, b: Theta) -> Tensor:
    """Return <a, b>, the sum over all parameters of the products, ()."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def constant_loss_gradient(
    theta: Theta,
    network: Network,
    images: Tensor,
    labels: Tensor,
    block_size: int,
    *,
    compiled: bool = False,
    autocast: torch.dtype | None = None,
) -> Theta:
    """Return g as a constant, computed a block of images at a time.

    The same numbers as `loss_gradient`, for where nothing is differentiated further: ordinary
    reverse mode keeps no graph of the backward pass, and blocks keep the activations in cache.

    Args:
        theta: Parameters.
        network: The network.
        images: (B, ch, h, w).
        labels: (B,).
        block_size: Images that go through the network at once.
        compiled: Whether each block goes by one compiled graph, filled up to its size, where the
            network has no fused operators for the device; for a network without batch norms.
        autocast: What convolutions and products are lowered to (`lowered`), if to anything; what
            they give for each block is added up as precise as theta.
    """
    function = lowered(network.first_order, autocast)

    def of_block(leaves: Theta, part: float, block: Tensor, block_labels: Tensor) -> Parts:
        loss = part * classification_loss(leaves, function, block, block_labels)
        return torch.autograd.grad(loss, list(leaves.values()))

    if not compiled or has_kernels(network.fused, images.device):
        (gradient,) = _sum_over_blocks(of_block, theta, images, labels, block_size)
        return gradient

    assert not network.batch_norms
    graph, factor = compiled_gradient(network.module, autocast), factor_of(images)

    def of_graph(leaves: Theta, _: float, block: Tensor, block_labels: Tensor) -> Parts:
        constants = {name: value.detach().contiguous() for name, value in leaves.items()}
        return list(graph(constants, network.statistics, block, block_labels, factor).values())

    filled_up = filled(images, labels, block_size)
    (gradient,) = _sum_over_blocks(of_graph, theta, *filled_up, block_size)
    return gradient


def constant_hessian_vector_product(
    theta: Theta,
    network: Network,
    images: Tensor,
    labels: Tensor,
    vector: Theta,
    block_size: int,
) -> Theta:
    """Return H v as a constant, a block of images at a time.

    As the gradient of dl/dtheta v (`loss_slope`). Where a layer has no rule for that
    (`tangents.py`), as `hessian_vector_product`.
    """

    def of_block(leaves: Theta, part: float, block: Tensor, block_labels: Tensor) -> Parts:
        along = part * loss_slope(leaves, network, block, block_labels, vector)
        return torch.autograd.grad(along, list(leaves.values()), materialize_grads=True)

    def without_rules(leaves: Theta, part: float, block: Tensor, block_labels: Tensor) -> Parts:
        loss = part * classification_loss(leaves, network, block, block_labels)
        gradient = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        slope = inner_product(dict(zip(leaves, gradient, strict=True)), vector)
        return torch.autograd.grad(slope, list(leaves.values()), materialize_grads=True)

    function = of_block if network.has_tangents else without_rules
    (product,) = _sum_over_blocks(function, theta, images, labels, block_size)
    return product


def constant_gradient_and_product(
    theta: Theta,
    network: Network,
    images: Tensor,
    labels: Tensor,
    vector: Theta,
    block_size: int,
) -> tuple[Theta, Theta]:
    """Return g and H v as constants, in one pass of a network that `has_tangents`.

    dl/dtheta v is linear in v, and its gradient with respect to v is g: for it the pass that gives
    H v (`constant_hessian_vector_product`) takes one product of matrices more in each layer.
    """

    def of_block(leaves: Theta, part: float, block: Tensor, block_labels: Tensor) -> Parts:
        moving = {name: vector[name].detach().requires_grad_() for name in leaves}
        along = part * loss_slope(leaves, network, block, block_labels, moving)
        inputs = [*moving.values(), *leaves.values()]
        return torch.autograd.grad(along, inputs, materialize_grads=True)

    gradient, product = _sum_over_blocks(of_block, theta, images, labels, block_size, results=2)
    return gradient, product


def loss_slope(
    theta: Theta, network: Network, images: Tensor, labels: Tensor, vector: Theta
) -> Tensor:
    """Return dl/dtheta v, (), of a network that `has_tangents`; differentiable once.

    From one pass of the logits z and their derivative z' along v: with p = softmax(z) and one-hot
    labels e, it is the mean of <p - e, z'>.

    Args:
        theta: Parameters.
        network: The network.
        images: (B, ch, h, w).
        labels: (B,).
        vector: v.
    """
    logits, slope = network.with_tangent(theta, vector, images)
    away = logits.softmax(1) - F.one_hot(labels, logits.shape[1])
    return (away * slope).sum() / len(labels)


def loss_curvature(
    theta: Theta, network: Network, images: Tensor, labels: Tensor, first: Theta, second: Theta
) -> Tensor:
    """Return <u, H v>, (), of images that are `in_kernels`; differentiable once, by them.

    It is d2l/dtheta2 (u, v), from one pass of the logits z, their slopes z_u and z_v, and that
    along both, z_uv: with p = softmax(z), L = diag(p) - p p' and one-hot labels e, the mean of
    <p - e, z_uv> + z_u' L z_v.

    Args:
        theta: Parameters.
        network: The network.
        images: (B, ch, h, w).
        labels: (B,).
        first: u.
        second: v.
    """
    logits, along_first, along_second, along_both = network.with_two_tangents(
        theta, first, second, images
    )
    away = logits.softmax(1) - F.one_hot(labels, logits.shape[1])
    curved = along_first * _curved(logits, along_second)
    curvature: Tensor = (away * along_both + curved).sum() / len(labels)
    return curvature


def constant_gauss_newton_vector_product(
    theta: Theta,
    network: Network,
    images: Tensor,
    labels: Tensor,
    vector: Theta,
    block_size: int,
) -> Theta:
    """Return G v as a constant, with the Gauss-Newton matrix G = mean of J' L J over the images.

    J is the derivative of the logits z with respect to theta, L = diag(p) - p p' the Hessian of the
    cross-entropy with respect to z (Schraudolph, "Fast Curvature Matrix-Vector Products for
    Second-Order Gradient Descent", 2002). L is positive semidefinite, so v' G v >= 0. J v is what
    `tangents.py` calculates, and J' u the gradient of <u, J v> with respect to v; where a layer has
    no rule there, J v is the derivative of <J' u, v> with respect to u.
    """

    def of_block(leaves: Theta, part: float, block: Tensor, block_labels: Tensor) -> Parts:
        constants = {name: value.detach() for name, value in leaves.items()}
        moving = {name: vector[name].detach().requires_grad_() for name in leaves}
        logits, pushed = network.with_tangent(constants, moving, block)
        weighed = part * _curved(logits, pushed.detach()) / len(block)
        return torch.autograd.grad(pushed, list(moving.values()), weighed, materialize_grads=True)

    def without_rules(leaves: Theta, part: float, block: Tensor, block_labels: Tensor) -> Parts:
        logits = network(leaves, block)
        direction = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(
            logits, list(leaves.values()), direction, create_graph=True, materialize_grads=True
        )
        slope = inner_product(dict(zip(leaves, pulled, strict=True)), vector)
        (pushed,) = torch.autograd.grad(slope, direction, retain_graph=True)
        weighed = part * _curved(logits.detach(), pushed) / len(block)
        return torch.autograd.grad(logits, list(leaves.values()), weighed, materialize_grads=True)

    function = of_block if network.has_tangents else without_rules
    (product,) = _sum_over_blocks(function, theta, images, labels, block_size)
    return product


def _curved(logits: Tensor, directions: Tensor) -> Tensor:
    # L u of each image, for u (B, C).
    probability = logits.softmax(1)
    return probability * (directions - (probability * directions).sum(1, keepdim=True))


def _sum_over_blocks(
    of_block: Callable[[Theta, float, Tensor, Tensor], Parts],
    theta: Theta,
    images: Tensor,
    labels: Tensor,
    block_size: int,
    results: int = 1,
) -> list[Theta]:
    # `of_block` takes theta, ready to be differentiated by; the block's share of the batch; the
    # block's images and labels. It gives so many results of the shape of theta, one after another.
    leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}

    def in_blocks(size: int) -> list[Theta]:
        if size >= len(images):
            whole = iter(of_block(leaves, 1.0, images, labels))
            # In the order of theta in memory, as sums are.
            return [{name: next(whole).contiguous() for name in theta} for _ in range(results)]
        totals = [
            {name: torch.zeros_like(value) for name, value in theta.items()} for _ in range(results)
        ]
        values = [value for total in totals for value in total.values()]
        for block, block_labels in zip(images.split(size), labels.split(size), strict=True):
            parts = of_block(leaves, len(block) / len(images), block, block_labels)
            for value, addend in zip(values, parts, strict=True):
                value += addend
        return totals

    return with_less_memory(in_blocks, block_size, labels.device.type)
