"""The derivative of a distance between gradients with respect to the images, in one pass.

Shapes: B = batch, image = (ch, h, w); a gradient has the shape of theta.
"""

import torch
from torch import Tensor

from condensation.derivatives import constant_loss_gradient, loss_slope
from condensation.distances import Distance
from condensation.memory import with_less_memory
from condensation.networks import Network, Theta


def distance_slope(
    theta: Theta,
    network: Network,
    images: Tensor,
    labels: Tensor,
    target: Theta,
    distance: Distance,
    block_size: int,
) -> tuple[Tensor, Tensor]:
    """Return dD/dimages and D(g, target) as constants, of a network that `has_tangents`.

    The same numbers as by differentiating through `loss_gradient`. With v = dD/dg as a constant,
    dD/dimages is the derivative of <g, v>, and that is dl/dtheta v (`loss_slope`): nothing is
    differentiated twice, so that compiled kernels can be used throughout.

    Args:
        theta: Parameters.
        network: The network.
        images: (B, ch, h, w).
        labels: (B,).
        target: What g is compared with.
        distance: D.
        block_size: Images that go through the network at once.

    Returns:
        (B, ch, h, w) and ().
    """
    constants = images.detach()
    gradient = constant_loss_gradient(theta, network, constants, labels, block_size)
    leaves = {name: value.requires_grad_() for name, value in gradient.items()}
    loss = distance(leaves, target)
    slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    vector = dict(zip(leaves, slopes, strict=True))

    def in_blocks(size: int) -> Tensor:
        parts = []
        for block, block_labels in zip(constants.split(size), labels.split(size), strict=True):
            learned = block.clone().requires_grad_()
            along = loss_slope(theta, network, learned, block_labels, vector)
            parts += torch.autograd.grad(len(block) / len(images) * along, learned)
        return torch.cat(parts)

    return with_less_memory(in_blocks, block_size, labels.device.type), loss.detach()
