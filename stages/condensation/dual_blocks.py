"""Blocks of ConvNet by compiled kernels, with slopes along one direction of the parameters.

As in `compiled_blocks.py`, but each takes and gives pairs: a value, and its derivative along the
direction. Both can be differentiated once, which gives products with second derivatives, and slopes
of gradients by the images (`tangents.py`). With y the convolution of x with w, and x', w' the
slopes, y' is that of x' with w plus that of x with w': three products of matrices forward and six
back, three of these for the images, where the block alone has one and two. The formulas of the norm
are at `dual_norm_backward` in `kernels.cpp`.

Shapes: N = images, h x w = their size, c = input channels, o = filters, P = number of tiles. The
parameters of a norm and the bias, scale, shift, bias, are one tensor (3, o).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from condensation import kernels, winograd
from condensation.compiled_blocks import block_backward, num_tiles, planes, tiled, untiled


class DualWinogradBlock(torch.autograd.Function):
    """A block of many channels: pairs (N, h, w, c) -> pairs (N, h / 2, w / 2, o).

    h and w are multiples of 4.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, image_slopes: Tensor, weight: Tensor, weight_slope: Tensor,
        parameters: Tensor, parameter_slopes: Tensor, eps: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Keep the tiles of the input, and the normalised results of the convolutions."""
        (number, height, width, _), filters = images.shape, len(weight)
        tiles, tile_slopes = (tiled(each, each.dtype) for each in (images, image_slopes))
        factors, factor_slopes = (
            winograd.transform_filters(each).transpose(1, 2) for each in (weight, weight_slope)
        )
        products, product_slopes = (
            planes(images.dtype, num_tiles(tiles), filters) for _ in range(2)
        )
        torch.bmm(tiles, factors, out=products)
        torch.bmm(tile_slopes, factors, out=product_slopes)
        product_slopes.baddbmm_(tiles, factor_slopes)
        normalised, slopes = (images.new_empty(number, filters, height * width) for _ in range(2))
        inverses, alongs = (images.new_empty(number, filters) for _ in range(2))
        pooled, pooled_slopes = (
            images.new_empty(number, height // 2, width // 2, filters) for _ in range(2)
        )
        all_parameters = torch.cat([parameters, parameter_slopes])
        kernels.call(
            "dual_forward", products, product_slopes, all_parameters, normalised, slopes, inverses,
            alongs, pooled, pooled_slopes, eps,
            sizes=(products.stride(0), number, height, width, filters),
        )  # fmt: skip
        ctx.save_for_backward(
            tiles, tile_slopes, weight, weight_slope, all_parameters, normalised, slopes,
            inverses, alongs,
        )  # fmt: skip
        ctx.size = height, width
        ctx.set_materialize_grads(False)
        if not _moves(ctx, 0, 2, 4):
            ctx.mark_non_differentiable(pooled)
        return pooled, pooled_slopes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the slopes of what they are asked for; those of the slopes alone take less."""
        if _moves(ctx, 0, 2, 4):
            return _dual_backward(ctx, *_both(a, b))
        assert b is not None  # as the values are then not differentiable
        return _slopes_backward(ctx, b)


def _moves(ctx: Any, *places: int) -> bool:
    # Whether the values, at these places of the inputs, are differentiated by, not slopes alone.
    return any(ctx.needs_input_grad[place] for place in places)


def _both(a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    # The slopes of the values and of their slopes, zeros where nothing was made of them.
    of_values = torch.zeros_like(b) if a is None and b is not None else a
    assert of_values is not None
    of_slopes = torch.zeros_like(of_values) if b is None else b
    return of_values.contiguous(), of_slopes.contiguous()


def _dual_backward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
    (
        tiles, tile_slopes, weight, weight_slope, parameters, normalised, slopes, inverses, alongs,
    ) = ctx.saved_tensors  # fmt: skip
    shape = (num_tiles(tiles), len(weight))
    of_tiles, of_tile_slopes = (planes(tiles.dtype, *shape) for _ in range(2))
    of_products = of_product_slopes = None
    if _moves(ctx, 2, 3):
        of_products, of_product_slopes = (planes(tiles.dtype, *shape) for _ in range(2))
    sums = torch.zeros_like(parameters)
    kernels.call(
        "dual_backward", a, b, normalised, slopes, inverses, alongs,
        parameters, of_products, of_product_slopes, of_tiles, of_tile_slopes, sums,
        sizes=(of_tiles.stride(0), len(b), *ctx.size, len(weight)),
    )  # fmt: skip
    of_weight = of_weight_slope = None
    if ctx.needs_input_grad[2]:
        assert of_products is not None and of_product_slopes is not None
        of_filters = torch.bmm(of_products.transpose(1, 2), tiles)
        of_filters.baddbmm_(of_product_slopes.transpose(1, 2), tile_slopes)
        of_weight = winograd.transform_filters_back(of_filters)
    if ctx.needs_input_grad[3]:
        assert of_product_slopes is not None
        of_filters = torch.bmm(of_product_slopes.transpose(1, 2), tiles)
        of_weight_slope = winograd.transform_filters_back(of_filters)
    of_images = of_image_slopes = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        turned, turned_slope = (
            winograd.transform_filters(each, turned=True) for each in (weight, weight_slope)
        )
        products = planes(tiles.dtype, num_tiles(tiles), tiles.shape[2])
        torch.bmm(of_tiles, turned, out=products)
        products.baddbmm_(of_tile_slopes, turned_slope)
        of_images = untiled(products, b, ctx.size)
        torch.bmm(of_tile_slopes, turned, out=products)
        of_image_slopes = untiled(products, b, ctx.size)
    return of_images, of_image_slopes, of_weight, of_weight_slope, sums[:3], sums[3:], None


def _slopes_backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:
    # The slopes are linear in the slopes: this is the backward pass of the block itself.
    tiles, _, weight, _, (scale, shift, *_), normalised, _, inverses, _ = ctx.saved_tensors
    of_image_slopes, of_weight_slope, sums = block_backward(
        b, tiles, weight, scale, shift, normalised, inverses, ctx.size, ctx.needs_input_grad[1]
    )
    return None, of_image_slopes, None, of_weight_slope, None, sums, None


class DualFirstBlock(torch.autograd.Function):
    """A block of few channels: images (N, c, h, w) -> pairs (N, h / 2, w / 2, o).

    The images have no slope along the direction; they can be differentiated by. Computed again for
    the backward pass, as `compiled_blocks.FirstBlock` is.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, weight_slope: Tensor, parameters: Tensor,
        parameter_slopes: Tensor, eps: float, padding: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Keep the images and the parameters."""
        padded = F.pad(images, (padding,) * 4).contiguous()
        number, channels, height, width = padded.shape
        filters = len(weight)
        taps = torch.cat([each.flatten(1).T for each in (weight, weight_slope)])
        all_parameters = torch.cat([parameters, parameter_slopes])
        pooled, pooled_slopes = (
            images.new_empty(number, height // 2 - 1, width // 2 - 1, filters) for _ in range(2)
        )
        sizes = (number, channels, height, width, filters)
        kernels.call(
            "first_dual_forward", padded, taps, all_parameters, pooled, pooled_slopes, eps,
            sizes=sizes,
        )  # fmt: skip
        ctx.save_for_backward(padded, taps, all_parameters)
        ctx.eps, ctx.sizes, ctx.shape, ctx.padding = eps, sizes, weight.shape, padding
        ctx.set_materialize_grads(False)
        if not _moves(ctx, 0, 1, 3):
            ctx.mark_non_differentiable(pooled)
        return pooled, pooled_slopes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the slopes of the images, of the parameters and of their slopes."""
        of_images = _of_first_images(ctx, *_both(a, b)) if ctx.needs_input_grad[0] else None
        of_parameters: tuple[Tensor | None, ...] = (None,) * 4
        if _moves(ctx, 1, 3):
            of_parameters = _of_first_parameters(ctx, *_both(a, b))
        elif _moves(ctx, 2, 4):
            # Of the slopes alone; where the images move too, the values may have been used alone.
            of_parameters = _of_first_slopes(ctx, *_both(a, b)[1:])
        return of_images, *of_parameters, None, None


def _of_first_images(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
    # Without the border that was put around them.
    number, channels, height, width, _ = ctx.sizes
    border = 2 * ctx.padding
    of_images = b.new_empty(number, channels, height - border, width - border)
    kernels.call(
        "first_dual_images", a, b, *ctx.saved_tensors, of_images, ctx.eps,
        sizes=(*ctx.sizes, ctx.padding),
    )  # fmt: skip
    return of_images


def _of_first_parameters(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    padded, taps, parameters = ctx.saved_tensors
    of_taps, sums = torch.zeros_like(taps), torch.zeros_like(parameters)
    kernels.call(
        "first_dual_backward", a, b, padded, taps, parameters, of_taps, sums, ctx.eps,
        sizes=ctx.sizes,
    )  # fmt: skip
    of_weight, of_weight_slope = (part.T.reshape(ctx.shape) for part in of_taps.chunk(2))
    return of_weight, of_weight_slope, sums[:3], sums[3:]


def _of_first_slopes(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:
    # The slopes are linear in the slopes: this is the backward pass of the block itself.
    padded, taps, (scale, shift, bias, *_) = ctx.saved_tensors
    own = taps[: len(taps) // 2]
    of_taps, sums = torch.zeros_like(own), own.new_zeros(3, own.shape[1])
    kernels.call(
        "first_backward", b, padded, own, bias, scale, shift, of_taps, *sums, ctx.eps,
        sizes=ctx.sizes,
    )  # fmt: skip
    return None, of_taps.T.reshape(ctx.shape), None, sums
