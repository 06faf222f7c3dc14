"""The gradient of the loss on a batch as one graph: for devices that take longer to be told.

`torch.compile` of the whole transform, as of the synthetic side (`stacked_classes.py`). A graph is
for one shape: a batch that is smaller is filled up with images that have no label, and count for
nothing.

Shapes: B = images in a batch, image = (ch, h, w).
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from condensation.graphs import one_graph
from condensation.networks import Theta
from condensation.precisions import lowered

SumGradient = Callable[[Theta, Theta, Tensor, Tensor, Tensor], Theta]
"""`(theta, fixed parameters, images (B, ch, h, w), labels (B,), factor ()) -> gradient` of the
factor times the sum of the cross-entropies of the images that have a label."""

NO_LABEL = -100
"""What `cross_entropy` leaves out."""


def sum_gradient(module: nn.Module, autocast: torch.dtype | None = None) -> SumGradient:
    """Return the function that `compiled_gradient` compiles.

    Args:
        module: The network's architecture, without batch norms: an image counts by itself.
        autocast: What convolutions and products are lowered to (`lowered`), if to anything.
    """

    def call(theta: Theta, images: Tensor) -> Tensor:
        logits: Tensor = functional_call(module, theta, (images,))
        return logits

    network = lowered(call, autocast)

    def loss(theta: Theta, fixed: Theta, images: Tensor, labels: Tensor, factor: Tensor) -> Tensor:
        logits = network({**theta, **fixed}, images)
        return factor * F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")

    gradient: SumGradient = grad(loss)
    return gradient


@cache
def compiled_gradient(
    module: nn.Module, autocast: torch.dtype | None = None, backend: str = "inductor"
) -> SumGradient:
    """Return the same as one graph; the same arguments give the same one, compiled once a shape.

    None of its arguments may require a gradient.

    Args:
        module: As of `sum_gradient`.
        autocast: As of `sum_gradient`.
        backend: Of `torch.compile`.
    """
    return one_graph(sum_gradient(module, autocast), backend)


def filled(images: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return images (B, ch, h, w) and labels (B,) with B brought to a multiple of `size`."""
    missing = -len(labels) % size
    if not missing:
        return images.contiguous(), labels
    images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing))
    return images, F.pad(labels, (0, missing), value=NO_LABEL)


def factor_of(images: Tensor) -> Tensor:
    """Return what makes the mean of the sum over these images, (), where they are."""
    return torch.full((), 1 / len(images), dtype=images.dtype, device=images.device)
