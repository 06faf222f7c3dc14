"""Normalisation layers, and batch norm without a state. One function each, in `NORMS`.

Shapes: B = batch, activations = (B, ch, h, w), statistics = (ch,).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 4
"""Groups of channels of `group`, the published number."""


class BatchNorm(nn.Module):
    """Batch norm (Ioffe and Szegedy, ICML 2015) that keeps no running averages.

    It normalises by the mean and the variance of the batch it sees, or, once `frozen`, by `mean`
    and `variance`, which are constants and not parameters. `torch.nn.BatchNorm2d` would change its
    running averages in place while it computes, so it is not a function of theta and images.

    Attributes:
        weight: (ch,) factor of each channel.
        bias: (ch,) what is added to each channel.
        mean: (ch,) mean of each channel, where frozen.
        variance: (ch,) variance of each channel, where frozen.
        frozen: Whether to use `mean` and `variance`.
    """

    mean: Tensor
    variance: Tensor
    eps = 1e-5

    def __init__(self, num_channels: int) -> None:
        """Begin as the identity on normalised channels."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("mean", torch.zeros(num_channels), persistent=False)
        self.register_buffer("variance", torch.ones(num_channels), persistent=False)
        self.frozen = False

    def forward(self, activations: Tensor) -> Tensor:
        """Return the normalised activations (B, ch, h, w)."""
        mean, variance = (
            (self.mean, self.variance) if self.frozen else channel_statistics(activations)
        )
        factor = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * factor
        return activations * factor[:, None, None] + shift[:, None, None]


class LayerNorm(nn.LayerNorm):
    """Layer norm (Ba, Kiros and Hinton, 2016) with the third derivatives that it has.

    `torch.nn.functional.layer_norm` treats its saved mean and deviation as constants when its
    second derivative is differentiated once more (seen in PyTorch 2.14), as the image gradient of a
    product with the Hessian does. Group norm with a single group is the same function, and right.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        """Begin as the identity on normalised activations of this shape (ch, h, w)."""
        super().__init__(shape)

    def forward(self, activations: Tensor) -> Tensor:
        """Return the normalised activations (B, ch, h, w)."""
        normalised = F.group_norm(activations, 1, eps=self.eps)
        return normalised * self.weight + self.bias


def channel_statistics(activations: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance (divided by the number) of each channel: (ch,), (ch,)."""
    # Under `torch.autocast` a convolution gives bfloat16, in which these would be rounded.
    activations = activations.to(torch.promote_types(activations.dtype, torch.float32))
    mean = activations.mean((0, 2, 3))
    variance = (activations - mean[:, None, None]).square().mean((0, 2, 3))
    return mean, variance


Norm = Callable[[tuple[int, int, int]], nn.Module]
"""(ch, h, w) of the activations -> a layer."""


def instance_norm(shape: tuple[int, int, int]) -> nn.Module:
    """Each channel of each image by itself: group norm with one group a channel."""
    return nn.GroupNorm(shape[0], shape[0])


def batch_norm(shape: tuple[int, int, int]) -> nn.Module:
    """Each channel over the whole batch."""
    return BatchNorm(shape[0])


def layer_norm(shape: tuple[int, int, int]) -> nn.Module:
    """All of an image at once, with a weight and a bias for each place."""
    return LayerNorm(shape)


def group_norm(shape: tuple[int, int, int]) -> nn.Module:
    """Four groups of channels of each image.

    Raises:
        ValueError: The channels do not divide into four groups.
    """
    if shape[0] % GROUPS:
        raise ValueError(
            f"norm 'group': got {shape[0]} channels, takes a multiple of {GROUPS} (look at width)"
        )
    return nn.GroupNorm(GROUPS, shape[0])


def no_norm(shape: tuple[int, int, int]) -> nn.Module:
    """Leave the activations as they are."""
    return nn.Identity()


NORMS: dict[str, Norm] = {
    "instance": instance_norm,
    "batch": batch_norm,
    "layer": layer_norm,
    "group": group_norm,
    "none": no_norm,
}


def has_norm(module: nn.Module) -> bool:
    """Return whether any of its layers normalises."""
    return any(
        isinstance(layer, BatchNorm | nn.GroupNorm | nn.LayerNorm) for layer in module.modules()
    )
