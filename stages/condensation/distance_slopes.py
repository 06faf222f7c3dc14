"""Derivatives of the matching loss with respect to the images, with nothing differentiated twice.

For a distance D between a gradient or product g and a constant, with v = dD/dg as a constant,
dD/dimages is the derivative of <g, v>. Of a gradient that is dl/dtheta v (`loss_slope`), of a
Hessian-vector product a second derivative along two directions (`loss_curvature`): each in one pass
of the network, which is differentiated once, so that compiled kernels can be used throughout. The
same numbers as by differentiating through `loss_gradient` and `hessian_vector_product`.

Shapes: B = batch, image = (ch, h, w); a gradient has the shape of theta.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from condensation.derivatives import constant_hessian_vector_product, loss_curvature, loss_slope
from condensation.distances import Distance
from condensation.memory import with_less_memory
from condensation.networks import Network, Theta


def slope_along(
    theta: Theta, network: Network, images: Tensor, labels: Tensor, vector: Theta, block_size: int
) -> Tensor:
    """Return d<g, v>/dimages, (B, ch, h, w), as a constant, of a network that `has_tangents`.

    Args:
        theta: Parameters.
        network: The network.
        images: (B, ch, h, w).
        labels: (B,).
        vector: v.
        block_size: Images that go through the network at once.
    """

    def along(block: Tensor, block_labels: Tensor) -> Tensor:
        return loss_slope(theta, network, block, block_labels, vector)

    return _image_slope(along, images, labels, block_size)


def distance_slope(
    theta: Theta,
    network: Network,
    images: Tensor,
    labels: Tensor,
    gradient: Theta,
    target: Theta,
    distance: Distance,
    block_size: int,
) -> tuple[Tensor, Tensor]:
    """Return dD/dimages and D(g, target) as constants, of a network that `has_tangents`.

    Args:
        theta: Parameters.
        network: The network.
        images: (B, ch, h, w).
        labels: (B,).
        gradient: g.
        target: What it is compared with.
        distance: D.
        block_size: Images that go through the network at once.

    Returns:
        (B, ch, h, w) and ().
    """
    vector, loss = _direction(gradient, target, distance)
    return slope_along(theta, network, images, labels, vector, block_size), loss


def product_distance_slope(
    theta: Theta,
    network: Network,
    images: Tensor,
    labels: Tensor,
    vector: Theta,
    target: Theta,
    distance: Distance,
    block_size: int,
) -> tuple[Tensor, Tensor]:
    """Return dD/dimages and D(H v, target) as constants, of images that are `in_kernels`.

    Args:
        theta: Parameters.
        network: The network.
        images: (B, ch, h, w).
        labels: (B,).
        vector: v.
        target: What H v is compared with.
        distance: D.
        block_size: Images that go through the network at once.

    Returns:
        (B, ch, h, w) and ().
    """
    product = constant_hessian_vector_product(theta, network, images, labels, vector, block_size)
    direction, loss = _direction(product, target, distance)

    def along(block: Tensor, block_labels: Tensor) -> Tensor:
        return loss_curvature(theta, network, block, block_labels, direction, vector)

    return _image_slope(along, images, labels, block_size), loss


def _direction(value: Theta, target: Theta, distance: Distance) -> tuple[Theta, Tensor]:
    # dD/dvalue and D.
    leaves = {name: each.detach().requires_grad_() for name, each in value.items()}
    loss = distance(leaves, target)
    slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, slopes, strict=True)), loss.detach()


def _image_slope(
    along: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor, block_size: int
) -> Tensor:
    # The slope by the images of what is a mean over them.
    constants = images.detach()

    def in_blocks(size: int) -> Tensor:
        parts = []
        for block, block_labels in zip(constants.split(size), labels.split(size), strict=True):
            learned = block.clone().requires_grad_()
            value = along(learned, block_labels)
            parts += torch.autograd.grad(len(block) / len(images) * value, learned)
        return torch.cat(parts)

    return with_less_memory(in_blocks, block_size, labels.device.type)
