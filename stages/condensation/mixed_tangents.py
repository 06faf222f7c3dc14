"""A ConvNet and its derivatives along two directions of the parameters, and along both, by kernels.

With z(theta) the logits, in one pass: z, its slopes along u and along v, and d2z/dtheta2 (u, v), by
numbers of four parts (`mixed_blocks.py`; Fike and Alonso, "The Development of Hyper-Dual Numbers
for Exact Second-Derivative Calculations", AIAA 2011). It can then be differentiated once by the
images: a third derivative, of which no part is differentiated more than that.

Shapes: B = batch, C = classes, image = (ch, h, w).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condensation import fused
from condensation.mixed_blocks import MixedFirstBlock, MixedWinogradBlock, product_parts
from condensation.tangents import Values, by_layer


def mixed_pass(
    module: nn.Sequential, theta: Values, first: Values, second: Values, images: Tensor
) -> Tensor:
    """Return z, z_u, z_v and z_uv, (4, B, C), differentiable once by the images.

    Args:
        module: Layers that `tangents.in_kernels` of the images.
        theta: Parameters and constants of all layers.
        first: u, of the parameters that move.
        second: v, likewise.
        images: (B, ch, h, w).
    """
    names, layers = zip(*module.named_children(), strict=True)
    values = list(zip(*(by_layer(each, names) for each in (theta, first, second)), strict=True))
    at, position = images, 0
    while fused.is_block(block := layers[position : position + 4]):
        convolution, norm = block[:2]
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.GroupNorm)
        own, own_norm = values[position], values[position + 1]
        weights = torch.stack(_moved(own, "weight"))
        rows = [_moved(own_norm, "weight"), _moved(own_norm, "bias"), _moved(own, "bias")]
        parameters = torch.stack([torch.stack(row) for row in rows], 1)
        parameters = F.pad(parameters, (0, 0, 0, 0, 0, 1))  # they have no part along both
        if position:
            at = MixedWinogradBlock.apply(at, weights, parameters, norm.eps)
        else:
            padding = int(convolution.padding[0])
            at = MixedFirstBlock.apply(at, weights, parameters, norm.eps, padding)
        position += 4
    at = at.permute(0, 1, 4, 2, 3)
    for layer, own in zip(layers[position:], values[position:], strict=True):
        if isinstance(layer, nn.Linear):
            products = product_parts(at.unbind(), [part.T for part in _moved(own, "weight")])
            biases = _moved(own, "bias") if layer.bias is not None else []
            at = torch.stack([*map(torch.add, products, biases), *products[len(biases) :]])
        else:
            at = torch.stack([layer(part) for part in at])
    return at


def _moved(values: tuple[Values, ...], key: str) -> list[Tensor]:
    # A parameter and its slopes, zero where a direction does not move it.
    own = values[0][key]
    return [own, *(each.get(key, torch.zeros_like(own)) for each in values[1:])]
