"""In what precision a network computes its logits. One line each, in `PRECISIONS`.

Shapes: B = batch, C = classes, image = (ch, h, w).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from condensation.networks import NetworkFunction, Theta


def lowered(network: NetworkFunction, dtype: torch.dtype | None) -> NetworkFunction:
    """Return the network with its convolutions and products in a lower precision.

    By `torch.autocast`. Their derivatives are calculated in it, too; parameters, images, logits and
    gradients keep their own type. Only what is float32 is lowered: float64 stays as it is.

    Args:
        network: `(theta, images (B, ch, h, w)) -> logits (B, C)`.
        dtype: Of the operands; None leaves the network as it is.
    """
    if dtype is None:
        return network

    def call(theta: Theta, images: Tensor) -> Tensor:
        # No cache of lowered parameters: each is used once, and there is one for all threads.
        with torch.autocast(images.device.type, dtype, cache_enabled=False):
            logits = network(theta, images)
        return logits.to(images.dtype)

    return call


PRECISIONS: dict[str, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
}


class Precisions(NamedTuple):
    """Keys of `PRECISIONS`; the fields are named as the settings are.

    Attributes:
        real_precision: Of gradients on real images.
        network_precision: Of the training between image steps.
    """

    real_precision: str
    network_precision: str
