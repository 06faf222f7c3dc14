"""Blocks of ConvNet on CUDA: the formulas of `fused.py`, each pass a kernel of `cuda_kernels.py`.

The convolutions but the first are cuDNN's, with the channels last. A bias in front of an instance
norm changes nothing: it is left out, and its slope is zero.

Shapes: N = images, h x w = their size after the convolution, c = input channels, o = filters.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from condensation import cuda_kernels

PROGRAMS = {"first": (8192, 4), "pool": (4096, 4)}
"""Of each kind of kernel, the pixels times filters of a program, and its warps of 32 threads: so
many numbers stay in the registers of a thread, of which there are 255."""

FEWEST_FILTERS = 4
"""Of a program, however many pixels: with fewer, memory is read in small pieces."""

MOST_PIXELS = 4096
"""Of an image after the convolution."""

TOLERANCE = 1e-4
"""Largest difference from PyTorch's operators in float32, relative to the largest number."""

FEW_CHANNELS = 4
"""Up to which the first block convolves by itself; with more, cuDNN."""


def program(kind: str, pixels: int, filters: int) -> dict[str, int]:
    """Return the places and filters of a program, powers of two, and its warps.

    Args:
        kind: A key of `PROGRAMS`.
        pixels: h w.
        filters: o.
    """
    places, (numbers, warps) = triton.next_power_of_2(pixels // 4), PROGRAMS[kind]
    some = max(FEWEST_FILTERS, numbers // (4 * places))
    some = min(some, triton.next_power_of_2(filters))
    # As many numbers a thread, however many there are.
    warps = min(max(1, warps * 4 * places * some // numbers), 16)
    exact = 4 * places == pixels and filters % some == 0
    return {"PLACES": places, "FILTERS": some, "EXACT": exact, "num_warps": warps}


def block(
    images: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor,
    eps: float, padding: int, lower: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """Return 3 x 3 convolution, instance norm, ReLU and 2 x 2 average pooling of images.

    Differentiable once.

    Args:
        images: (N, c, rows, columns); h and w even, at most `MOST_PIXELS` together.
        weight: (o, c, 3, 3).
        bias: (o,).
        scale: (o,).
        shift: (o,).
        eps: Of the norm.
        padding: Of the convolution, on each side.
        lower: What the convolution is calculated in, and images between the layers are; None: in
            the images' own type. What is not float32 or this stays as it is.

    Returns:
        (N, o, h / 2, w / 2), with the channels last in memory.
    """
    if images.dtype == torch.float64:
        lower = None
    if images.shape[1] <= FEW_CHANNELS and not images.requires_grad:
        pooled = _First.apply(
            images, weight, bias, scale, shift, eps, padding, lower or images.dtype
        )
    else:
        images = images.to(lower or images.dtype, memory_format=torch.channels_last)
        filters = weight.to(images.dtype, memory_format=torch.channels_last)
        filtered = F.conv2d(images, filters, padding=padding)
        pooled = _Pool.apply(filtered.permute(0, 2, 3, 1), bias, scale, shift, eps)
    channels_first: Tensor = pooled.permute(0, 3, 1, 2)
    return channels_first


def largest_error(device: torch.device) -> float:
    """Compare the kernels with PyTorch's operators, in float32, on a few small images.

    Returns:
        The largest difference of values and slopes, relative to the largest of each.
    """
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(device).requires_grad_()

    images, weight = random(3, 1, 8, 8).detach(), random(8, 1, 3, 3)
    bias, scale, shift = random(8), random(8), random(8)
    # From the convolution on, which in PyTorch may be less precise, and by itself.
    convolved = F.unfold(images, 3, padding=1).transpose(1, 2) @ weight.flatten(1).T
    convolved = convolved.transpose(1, 2).unflatten(2, (8, 8))
    leaf = random(3, 8, 8, 8)

    def plain(values: Tensor) -> Tensor:
        return F.avg_pool2d(F.group_norm(values, 8, scale, shift, 1e-5).relu(), 2)

    first = _First.apply(images, weight, bias, scale, shift, 1e-5, 1, torch.float32)
    pool = _Pool.apply(leaf.permute(0, 2, 3, 1), bias, scale, shift, 1e-5)
    errors = []
    for found, expected, inputs in (
        (first.permute(0, 3, 1, 2), plain(convolved), (weight, scale, shift)),
        (pool.permute(0, 3, 1, 2), plain(leaf), (leaf, scale, shift)),
    ):
        slope = torch.ones_like(expected).cumsum(0)
        of_found, of_expected = (
            [each, *torch.autograd.grad(each, inputs, slope)] for each in (found, expected)
        )
        errors += [
            ((ours - theirs).abs().max() / theirs.abs().max()).item()
            for ours, theirs in zip(of_found, of_expected, strict=True)
        ]
    # Not by `max` of Python, which passes over what is no number.
    return torch.tensor(errors).max().item()


def _compute(parameter: Tensor) -> Any:
    return tl.float64 if parameter.dtype == torch.float64 else tl.float32


class _First(torch.autograd.Function):
    """A block of few channels on images that are constants -> (N, h / 2, w / 2, o)."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor,
        eps: float, padding: int, result: torch.dtype,
    ) -> Tensor:  # fmt: skip
        """Keep the images and the parameters; the type of what it gives is `result`."""
        images = F.pad(images, (padding,) * 4)
        images, weight, scale, shift = (x.contiguous() for x in (images, weight, scale, shift))
        number, channels, rows, row = images.shape
        height, width, filters = rows - 2, row - 2, len(weight)
        pooled = images.new_empty(number, height // 2, width // 2, filters, dtype=result)
        ctx.constants = {
            "inner": width // 2, "places": height * width // 4, "number": filters, "eps": eps,
            "CHANNELS": channels, "ROWS": rows, "ROW": row, "COMPUTE": _compute(weight),
            **program("first", height * width, filters),
        }  # fmt: skip
        ctx.grid = number, triton.cdiv(filters, ctx.constants["FILTERS"])
        cuda_kernels.first_forward[ctx.grid](images, weight, scale, shift, pooled, **ctx.constants)
        ctx.save_for_backward(images, weight, scale, shift)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Return the slopes of the parameters."""
        images, weight, scale, shift = ctx.saved_tensors
        taps = weight[0].numel()
        sums = weight.new_empty(len(images), taps + 2, len(weight))
        cuda_kernels.first_backward[ctx.grid](
            slope.contiguous(), images, weight, scale, shift, sums, **ctx.constants
        )
        *of_taps, of_scale, of_shift = sums.sum(0)
        of_weight = torch.stack(of_taps, 1).view_as(weight)
        of_bias = torch.zeros_like(of_shift)
        return None, of_weight, of_bias, of_scale, of_shift, None, None, None


class _Pool(torch.autograd.Function):
    """Norm, ReLU and pooling: (N, h, w, o) -> (N, h / 2, w / 2, o)."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float
    ) -> Tensor:
        """Keep what it is given."""
        images, scale, shift = (x.contiguous() for x in (images, scale, shift))
        number, height, width, filters = images.shape
        pooled = images.new_empty(number, height // 2, width // 2, filters)
        ctx.constants = {
            "inner": width // 2, "places": height * width // 4, "number": filters, "eps": eps,
            "COMPUTE": _compute(scale), **program("pool", height * width, filters),
        }  # fmt: skip
        ctx.grid = number, triton.cdiv(filters, ctx.constants["FILTERS"])
        cuda_kernels.pool_forward[ctx.grid](images, scale, shift, pooled, **ctx.constants)
        ctx.save_for_backward(images, scale, shift)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Return the slopes of the images and of the parameters."""
        images, scale, shift = ctx.saved_tensors
        of_images = torch.empty_like(images)
        sums = scale.new_empty(len(images), 2, len(scale))
        cuda_kernels.pool_backward[ctx.grid](
            slope.contiguous(), images, scale, shift, of_images, sums, **ctx.constants
        )
        of_scale, of_shift = sums.sum(0)
        return of_images, torch.zeros_like(of_shift), of_scale, of_shift, None
