"""Blocks of ConvNet by compiled kernels: the formulas of `fused.py` and `winograd.py`, sooner.

A block is 3 x 3 convolution, instance norm, ReLU and 2 x 2 average pooling. What remains beside
the kernels' passes are products of matrices.

Shapes: N = images, h x w = their size, c = input channels, o = filters, P = number of tiles.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from condensation import kernels, winograd


def planes(dtype: torch.dtype, tiles: int, channels: int, *, parts: tuple[int, ...] = ()) -> Tensor:
    """Return 36 planes with room for P tiles each, and one more, zero: (*parts, 36, P + 1, c).

    That one, which adds nothing to any product, keeps the planes apart: a kernel goes through all
    of them at once, and at multiples of a power of two they would share the same few places of the
    cache. It is a whole one, as products in bfloat16 first copy what has gaps in memory; in float32
    that is as fast as a gap of 64 bytes (128 and 256 channels).

    Args:
        dtype: Of the numbers.
        tiles: P.
        channels: c.
        parts: Of each part of numbers that have several: axes before the others.
    """
    made = torch.empty(*parts, 36, tiles + 1, channels, dtype=dtype)
    made[..., tiles:, :] = 0
    return made


def num_tiles(of_planes: Tensor) -> int:
    """Return P of `planes`."""
    return of_planes.shape[1] - 1


def tiled(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return B' d B of all tiles d of images (N, h, w, c) as `planes`, as products take them."""
    number, height, width, channels = images.shape
    tiles = planes(dtype, number * height * width // winograd.TILE**2, channels)
    sizes = (tiles.stride(0), *images.shape)
    kernels.call("input_transform", images.contiguous(), tiles, sizes=sizes)
    return tiles


def untiled(products: Tensor, like: Tensor, size: tuple[int, int]) -> Tensor:
    """Return A' m A of all products m, `planes`: images (N, h, w, c), of the type of `like`."""
    height, width = size
    number = num_tiles(products) * winograd.TILE**2 // (height * width)
    images = like.new_empty(number, height, width, products.shape[2])
    kernels.call("output_transform", products, images, sizes=(products.stride(0), *images.shape))
    return images


def block_backward(
    slope: Tensor, tiles: Tensor, weight: Tensor, scale: Tensor, shift: Tensor,
    normalised: Tensor, inverse: Tensor, size: tuple[int, int], of_images: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Return the slopes of a block's images, if they are asked for, of its weight and of the rest.

    Args:
        slope: (N, h / 2, w / 2, o), of what the block gives.
        tiles: `planes` of its images.
        weight: (o, c, 3, 3).
        scale: (o,).
        shift: (o,).
        normalised: What the forward pass kept, laid out as in `kernels.cpp`.
        inverse: (N, o), 1 / standard deviation.
        size: h, w.
        of_images: Whether the slope of the images is.

    Returns:
        (N, h, w, c) or None; (o, c, 3, 3); scale, shift and bias, (3, o).
    """
    of_products, of_tiles = (planes(tiles.dtype, num_tiles(tiles), len(weight)) for _ in range(2))
    sums = torch.zeros(3, len(weight), dtype=slope.dtype)
    kernels.call(
        "block_backward", slope.contiguous(), normalised, inverse, scale, shift,
        of_products, of_tiles, *sums, sizes=(of_tiles.stride(0), len(slope), *size, len(weight)),
    )  # fmt: skip
    of_filters = torch.bmm(of_products.transpose(1, 2), tiles).to(weight)
    if not of_images:
        return None, winograd.transform_filters_back(of_filters), sums
    # The transposed convolution: filters turned by 180 degrees, channels exchanged.
    products = planes(tiles.dtype, num_tiles(tiles), tiles.shape[2])
    factors = winograd.transform_filters(weight, turned=True).to(tiles)
    torch.bmm(of_tiles, factors, out=products)
    images = untiled(products, slope, size)
    return images, winograd.transform_filters_back(of_filters), sums


class WinogradBlock(torch.autograd.Function):
    """A block of many channels: (N, h, w, c) -> (N, h / 2, w / 2, o); h and w multiples of 4.

    The products of matrices are calculated from operands of the type `products_in`, and rounded to
    it.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor,
        eps: float, products_in: torch.dtype,
    ) -> Tensor:  # fmt: skip
        """Keep the tiles of the input and the normalised result of the convolution."""
        (number, height, width, _), filters = images.shape, len(weight)
        tiles = tiled(images, products_in)
        products = planes(products_in, num_tiles(tiles), filters)
        factors = winograd.transform_filters(weight).to(products_in)
        torch.bmm(tiles, factors.transpose(1, 2), out=products)
        normalised = images.new_empty(number, filters, height * width)
        inverse = images.new_empty(number, filters)
        pooled = images.new_empty(number, height // 2, width // 2, filters)
        scale, shift = scale.contiguous(), shift.contiguous()
        kernels.call(
            "block_forward", products, bias.contiguous(), scale, shift,
            normalised, inverse, pooled, eps,
            sizes=(products.stride(0), number, height, width, filters),
        )  # fmt: skip
        ctx.save_for_backward(tiles, weight, scale, shift, normalised, inverse)
        ctx.size = height, width
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Return the slopes of the images, if they are asked for, and of the parameters."""
        tiles, weight, scale, shift, normalised, inverse = ctx.saved_tensors
        of_images, of_weight, sums = block_backward(
            slope, tiles, weight, scale, shift, normalised, inverse, ctx.size,
            ctx.needs_input_grad[0],
        )  # fmt: skip
        of_scale, of_shift, of_bias = sums
        return of_images, of_weight, of_bias, of_scale, of_shift, None, None


class FirstBlock(torch.autograd.Function):
    """A block of few channels on images that are constants: (N, c, h, w) -> (N, h / 2, w / 2, o).

    The convolution is computed again for the backward pass: its result is the largest tensor of
    the network, and takes longer to write and read than to compute.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor,
        eps: float, padding: int,
    ) -> Tensor:  # fmt: skip
        """Keep the images and the parameters."""
        padded = F.pad(images, (padding,) * 4).contiguous()
        number, channels, height, width = padded.shape
        filters = len(weight)
        taps = weight.flatten(1).T.contiguous()
        pooled = images.new_empty(number, height // 2 - 1, width // 2 - 1, filters)
        constants = (taps, *(value.contiguous() for value in (bias, scale, shift)))
        sizes = (number, channels, height, width, filters)
        kernels.call("first_forward", padded, *constants, pooled, eps, sizes=sizes)
        ctx.save_for_backward(padded, *constants)
        ctx.eps, ctx.sizes, ctx.shape = eps, sizes, weight.shape
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Return the slopes of the parameters."""
        padded, taps, bias, scale, shift = ctx.saved_tensors
        of_weight = torch.zeros_like(taps)
        of_scale, of_shift, of_bias = (torch.zeros_like(scale) for _ in range(3))
        kernels.call(
            "first_backward", slope.contiguous(), padded, taps, bias, scale, shift,
            of_weight, of_scale, of_shift, of_bias, ctx.eps, sizes=ctx.sizes,
        )  # fmt: skip
        return None, of_weight.T.reshape(ctx.shape), of_bias, of_scale, of_shift, None, None
