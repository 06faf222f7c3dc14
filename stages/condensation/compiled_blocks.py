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


def planes(dtype: torch.dtype, num_tiles: int, channels: int) -> Tensor:
    """Return an empty (36, P, c), its 36 planes a little apart.

    A kernel goes through all of them at once; at multiples of a power of two they would share the
    same few places of the cache.
    """
    plane = num_tiles * channels + kernels.VECTOR_BYTES // dtype.itemsize
    shape, strides = (36, num_tiles, channels), (plane, channels, 1)
    return torch.empty(36 * plane, dtype=dtype).as_strided(shape, strides)


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
        number, height, width, channels = images.shape
        filters = len(weight)
        num_tiles = number * height * width // winograd.TILE**2
        tiles, products = (planes(products_in, num_tiles, each) for each in (channels, filters))
        kernels.call(
            "input_transform", images.contiguous(), tiles, sizes=(tiles.stride(0), *images.shape)
        )
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
        shape = (tiles.shape[1], len(weight))
        of_products, of_tiles = (planes(tiles.dtype, *shape) for _ in range(2))
        sizes = (of_tiles.stride(0), len(slope), *ctx.size, len(weight))
        of_scale, of_shift, of_bias = (torch.zeros_like(scale) for _ in range(3))
        kernels.call(
            "block_backward", slope.contiguous(), normalised, inverse, scale, shift,
            of_products, of_tiles, of_scale, of_shift, of_bias, sizes=sizes,
        )  # fmt: skip
        of_filters = torch.bmm(of_products.transpose(1, 2), tiles).to(weight)
        of_weight = winograd.transform_filters_back(of_filters)
        of_images = None
        if ctx.needs_input_grad[0]:
            # The transposed convolution: filters turned by 180 degrees, channels exchanged.
            products = planes(tiles.dtype, *tiles.shape[1:])
            factors = winograd.transform_filters(weight, turned=True).to(tiles)
            torch.bmm(of_tiles, factors, out=products)
            of_images = slope.new_empty(len(slope), *ctx.size, tiles.shape[2])
            kernels.call(
                "output_transform", products, of_images,
                sizes=(products.stride(0), *of_images.shape),
            )  # fmt: skip
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
