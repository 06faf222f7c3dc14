"""Blocks of ConvNet by compiled kernels, with slopes along two directions of the parameters.

As in `dual_blocks.py`, but of two directions, and with the slope along both: numbers of four parts,
a value, its slopes along the first and along the second, and that along both, on an axis before all
others. With x and w the images and the filters, the part along both of their convolution is
x_both w + x_1 w_2 + x_2 w_1, as the filters are moved along one or along the other: of all parts it
is eight products of matrices. Differentiable once, by the images: the slopes that go back are such
numbers too, and take as many products. The formulas of the norm are in `kernels.cpp`.

Shapes: N = images, h x w = their size, c = input channels, o = filters. Weights have three parts,
as they have none along both; scale, shift and bias are one tensor, (4, 3, o).
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from condensation import kernels, winograd
from condensation.compiled_blocks import num_tiles, planes, tiled, untiled

PAIRS = (((0, 0),), ((1, 0), (0, 1)), ((2, 0), (0, 2)), ((3, 0), (1, 2), (2, 1)))
"""Of each part of a product, which parts of its factors are multiplied, where the second factor has
no part along both."""


def product_parts(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    """Return the four parts of the product of matrices (..., n, k) and (..., k, m).

    Args:
        first: Four parts.
        second: Three.
    """
    return [reduce(torch.add, (first[i] @ second[j] for i, j in pairs)) for pairs in PAIRS]


class MixedWinogradBlock(torch.autograd.Function):
    """A block of many channels: (4, N, h, w, c) -> (4, N, h / 2, w / 2, o); h, w multiples of 4."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weights: Tensor, parameters: Tensor, eps: float
    ) -> Tensor:
        """Keep the normalised results of the convolutions."""
        (_, number, height, width, _), filters = images.shape, weights.shape[1]
        tiles = [tiled(part, part.dtype) for part in images]
        factors = [winograd.transform_filters(part).transpose(1, 2) for part in weights]
        products = _products(tiles, factors)
        normalised = images.new_empty(4, number, filters, height * width)
        inverses = images.new_empty(4, number, filters)
        pooled = images.new_empty(4, number, height // 2, width // 2, filters)
        parameters = parameters.contiguous()
        kernels.call(
            "mixed_forward", products, parameters, normalised, inverses, pooled, eps,
            sizes=(products.stride(1), number, height, width, filters),
        )  # fmt: skip
        ctx.save_for_backward(weights, parameters, normalised, inverses)
        ctx.size = height, width
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Return the slope of the images; the parameters are constants."""
        assert not any(ctx.needs_input_grad[1:])
        weights, parameters, normalised, inverses = ctx.saved_tensors
        (_, number, _, _, filters), (height, width) = slope.shape, ctx.size
        tiles = planes(
            slope.dtype, number * height * width // winograd.TILE**2, filters, parts=(4,)
        )
        kernels.call(
            "mixed_backward", _complement(slope), normalised, inverses, parameters, tiles,
            sizes=(tiles.stride(1), number, height, width, filters),
        )  # fmt: skip
        turned = [winograd.transform_filters(part, turned=True) for part in weights]
        products = _products(list(tiles), turned)
        images = [untiled(part, slope, ctx.size) for part in products.unbind()[::-1]]
        return torch.stack(images), None, None, None


def _products(tiles: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
    # (4 x (36, P, c), 3 x (36, c, o)) -> (4, 36, P, o), all of tiles as `planes`.
    made = planes(tiles[0].dtype, num_tiles(tiles[0]), factors[0].shape[2], parts=(4,))
    for part, pairs in zip(made, PAIRS, strict=True):
        (i, j), *others = pairs
        torch.bmm(tiles[i], factors[j], out=part)
        for i, j in others:
            part.baddbmm_(tiles[i], factors[j])
    return made


def _complement(slope: Tensor) -> Tensor:
    # As kernels take and give it: the slope of a part at the place of its complement.
    return slope.flip(0).contiguous()


class MixedFirstBlock(torch.autograd.Function):
    """A block of few channels: images (N, c, h, w) -> (4, N, h / 2, w / 2, o).

    The images have no slopes along the directions; they can be differentiated by. Computed again
    for the backward pass, as `compiled_blocks.FirstBlock` is.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weights: Tensor, parameters: Tensor, eps: float, padding: int
    ) -> Tensor:
        """Keep the images and the parameters."""
        padded = F.pad(images, (padding,) * 4).contiguous()
        number, channels, height, width = padded.shape
        filters = weights.shape[1]
        taps = weights.flatten(2).transpose(1, 2).contiguous()
        parameters = parameters.contiguous()
        pooled = images.new_empty(4, number, height // 2 - 1, width // 2 - 1, filters)
        sizes = (number, channels, height, width, filters)
        kernels.call("first_mixed_forward", padded, taps, parameters, pooled, eps, sizes=sizes)
        ctx.save_for_backward(padded, taps, parameters)
        ctx.eps, ctx.sizes, ctx.padding = eps, sizes, padding
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Return the slope of the images; the parameters are constants."""
        assert not any(ctx.needs_input_grad[1:])
        number, channels, height, width, _ = ctx.sizes
        border = 2 * ctx.padding
        of_images = slope.new_empty(number, channels, height - border, width - border)
        kernels.call(
            "first_mixed_images", _complement(slope), *ctx.saved_tensors, of_images, ctx.eps,
            sizes=(*ctx.sizes, ctx.padding),
        )  # fmt: skip
        return of_images, None, None, None, None
