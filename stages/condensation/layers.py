"""Layers that several networks share: activations, pooling, and what image sizes they take.

Everything here can be differentiated twice, and goes through `torch.func.grad` and `vmap`.

Shapes: B = batch, image = (ch, h, w).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,  # slope 0.01, the published one
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}


class AveragePool(nn.Module):
    """2 x 2 average pooling, as `torch.nn.AvgPool2d(2)`; an odd last row or column is left out."""

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, ch, h // 2, w // 2) of (B, ch, h, w)."""
        if images.device.type != "cpu":
            return F.avg_pool2d(images, 2)
        # On the CPU that operator is a quarter of a training step of ConvNet. A sum of rows and one
        # product with a matrix of halves give the same in a third of the time.
        height, width = images.shape[-2] // 2, images.shape[-1] // 2
        rows: Tensor = images[..., : 2 * height, : 2 * width].unflatten(-2, (height, 2)).sum(-2)
        pairs = torch.eye(width, dtype=images.dtype).repeat_interleave(2, 0)
        return rows @ (pairs / 4)


class MaxPool(nn.MaxPool2d):
    """2 x 2 maximum pooling; an odd last row or column is left out."""

    def __init__(self) -> None:
        """Take windows of 2 x 2 that do not overlap."""
        super().__init__(2)


POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "avg": AveragePool,
    "max": MaxPool,
    "none": nn.Identity,
}


def mnist_border(image_shape: tuple[int, int, int]) -> int:
    """Return what the first convolution adds to its padding: images of 28 x 28 become 32 x 32.

    The published networks are made for 32 x 32 and see MNIST so.
    """
    return 2 if image_shape[1:] == (28, 28) else 0


def require_size(network: str, image_shape: tuple[int, int, int], smallest: int) -> None:
    """Refuse images that are too small.

    Args:
        network: Its registered name, for the message.
        image_shape: (ch, h, w).
        smallest: The least height and width that it takes, after padding.

    Raises:
        ValueError: Naming the network, the size and what it takes.
    """
    _, height, width = image_shape
    if min(height, width) + 2 * mnist_border(image_shape) < smallest:
        takes = f"{smallest} x {smallest} and larger" + (" and 28 x 28" if smallest > 28 else "")
        raise ValueError(
            f"network '{network}': got images of {height} x {width}, takes {takes}; "
            "prepare.image_size brings images to another size"
        )
