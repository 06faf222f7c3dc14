"""Blocks of ConvNet, fused for training: the same function, differentiable once.

The operators of PyTorch for instance norm and pooling go through memory many times and are slow
with the channels last, where the convolutions are fastest; here each block is a handful of
products and passes. What matching needs (derivatives of derivatives, transforms of `torch.func`)
goes through the ordinary modules; what only trains, scores or takes one gradient comes here.

On CUDA a block is `cuda_blocks.py`'s, once that is loaded; what is said here is of the CPU.

Shapes: N = images, h x w = their size, c = channels, o = filters; channels last inside.
"""

import importlib.util
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from condensation import kernels, winograd
from condensation.compiled_blocks import FirstBlock, WinogradBlock
from condensation.layers import AveragePool

FEWEST_TILES = 32
"""Tiles in a batch from which Winograd's convolution is faster than the direct one: it transforms
the filters each time, whatever the number of images."""

FEWEST_CHANNELS = 32
"""Channels from which it is: with fewer, its transforms cost more than the products save."""

_loaded: list[Any] = []

CACHED = 2**18
"""Numbers in a tensor of which a core's cache holds a few: 1 MiB in float32."""


class FusedSequential(nn.Sequential):
    """Layers one after the other; blocks of convolution, norm, ReLU and pooling are fused.

    It has the parameters, the names and the result of the `torch.nn.Sequential` it is made from.
    Fused are 3 x 3 convolution, instance norm, ReLU, 2 x 2 average pooling in this order, where
    height and width are even; on the CPU under `torch.autocast` where a compiled kernel takes the
    block, of which only the products of matrices are then in the lower precision.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return what the layers give; differentiable once, by the parameters and the images."""
        layers = list(self)
        position, device = 0, images.device.type
        lower = None
        if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
            lower = torch.get_autocast_dtype(device)
        while position < len(layers):
            block = layers[position : position + 4]
            if is_block(block) and fits(images, block[0], lower):
                with torch.autocast(device, enabled=False):
                    images = _block(images, block[0], block[1], lower)
                position += 4
            else:
                images = layers[position](images)
                position += 1
        return images


def fused(module: nn.Module) -> nn.Module:
    """Return the module with its blocks fused; without any, the module itself."""
    if type(module) is nn.Sequential:
        layers = list(module)
        if any(is_block(layers[position : position + 4]) for position in range(len(layers))):
            return FusedSequential(OrderedDict(module.named_children()))
    return module


def load_cuda_blocks(device: torch.device) -> str:
    """Put the kernels of CUDA to use, if they give there what PyTorch's operators give.

    Returns:
        Empty, or why they are not used.
    """
    if importlib.util.find_spec("triton") is None:
        return "there is no Triton"
    from condensation import cuda_blocks as blocks

    try:
        error = blocks.largest_error(device)
    except Exception as failed:  # of a compiler or a driver, which Triton has of all kinds
        said = str(failed).strip().splitlines() or [type(failed).__name__]
        return f"Triton failed: {said[-1]}"
    if not error < blocks.TOLERANCE:
        return f"their results differ by {error:.1g} from PyTorch's"
    _loaded[:] = [blocks]
    return ""


def discard_cuda_blocks() -> None:
    """Use the kernels of CUDA no more."""
    _loaded.clear()


def cuda_blocks() -> Any:
    """Return the module of the blocks on CUDA, or None where it is not in use."""
    return _loaded[0] if _loaded else None


def has_kernels(module: nn.Module, device: torch.device) -> bool:
    """Whether the module has blocks that are kernels of CUDA on this device."""
    return on_cuda(device) and isinstance(module, FusedSequential) and cuda_blocks() is not None


def on_cuda(device: torch.device) -> bool:
    """Whether it is CUDA."""
    return device.type == "cuda"


def is_block(layers: Sequence[nn.Module]) -> bool:
    """Whether these are the layers that are fused."""
    if len(layers) < 4:
        return False
    convolution, norm, activation, pool = layers
    return (
        isinstance(convolution, nn.Conv2d)
        and convolution.kernel_size == (3, 3)
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.bias is not None
        and convolution.padding_mode == "zeros"
        and convolution.padding[0] == convolution.padding[-1] in range(1, 100)
        and isinstance(norm, nn.GroupNorm)
        and norm.num_groups == norm.num_channels
        and isinstance(activation, nn.ReLU)
        and isinstance(pool, AveragePool)
    )


def fits(images: Tensor, convolution: nn.Module, lower: torch.dtype | None = None) -> bool:
    """Whether a block takes images (N, c, h, w); with products in a lower precision, if one is."""
    assert isinstance(convolution, nn.Conv2d)
    height, width = filtered_size(images, convolution)
    if height % 2 or width % 2 or min(height, width) <= 0:
        return False
    if on_cuda(images.device):
        blocks = cuda_blocks()
        return blocks is not None and height * width <= blocks.MOST_PIXELS
    if images.device.type != "cpu":
        return False
    return lower is None or lower == kernels.LOWER and kernel_for(images, convolution) is not None


def filtered_size(images: Tensor, convolution: nn.Conv2d) -> tuple[int, int]:
    """Return the height and width of what a block's convolution makes of images (N, c, h, w)."""
    border = 2 * int(convolution.padding[0]) - 2
    return images.shape[-2] + border, images.shape[-1] + border


def kernel_for(images: Tensor, convolution: nn.Conv2d) -> type[torch.autograd.Function] | None:
    """Return what computes the block of images (N, c, h, w) by compiled kernels, if it is there."""
    if images.device.type != "cpu" or not kernels.usable(images.dtype, convolution.out_channels):
        return None
    if convolution.in_channels < FEWEST_CHANNELS:
        return None if images.requires_grad else FirstBlock
    by_tiles = _by_tiles(images, convolution)
    if by_tiles and kernels.usable(images.dtype, convolution.in_channels):
        return WinogradBlock
    return None


def _by_tiles(images: Tensor, convolution: nn.Conv2d) -> bool:
    number, _, height, width = images.shape
    return (
        int(convolution.padding[0]) == 1
        and height % winograd.TILE == width % winograd.TILE == 0
        and number * height * width >= FEWEST_TILES * winograd.TILE**2
    )


def _block(
    images: Tensor, convolution: nn.Module, norm: nn.Module, lower: torch.dtype | None
) -> Tensor:
    # (N, c, h, w) -> (N, o, h', w'), both with the channels last in memory
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.GroupNorm)
    assert convolution.bias is not None
    padding = int(convolution.padding[0])
    parameters = (convolution.weight, convolution.bias, norm.weight, norm.bias, norm.eps)
    if on_cuda(images.device):
        by_triton: Tensor = cuda_blocks().block(images, *parameters, padding, lower)
        return by_triton
    kernel, channels_last = kernel_for(images, convolution), images.permute(0, 2, 3, 1)
    pooled: Tensor
    if kernel is FirstBlock:
        pooled = FirstBlock.apply(images, *parameters, padding)
        return pooled.permute(0, 3, 1, 2)
    if kernel is WinogradBlock:
        # What is not float32 is calculated as it is, as by `torch.autocast`.
        products_in = lower if lower and images.dtype == torch.float32 else images.dtype
        pooled = WinogradBlock.apply(channels_last, *parameters, products_in)
        return pooled.permute(0, 3, 1, 2)
    if convolution.in_channels < FEWEST_CHANNELS:
        filtered = _PatchConvolution.apply(images, convolution.weight, convolution.bias, padding)
    elif _by_tiles(images, convolution):
        filtered = winograd.convolve(channels_last, convolution.weight, convolution.bias)
    else:
        direct = F.conv2d(images, convolution.weight, convolution.bias, padding=padding)
        filtered = direct.permute(0, 2, 3, 1)
    pooled = _NormActivationPool.apply(filtered, norm.weight, norm.bias, norm.eps)
    return pooled.permute(0, 3, 1, 2)


class _PatchConvolution(torch.autograd.Function):
    """3 x 3 convolution of few channels: one product of all patches and the filters."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        number, _, height, width = images.shape
        patches = F.unfold(images, 3, padding=padding).transpose(1, 2).flatten(0, 1)
        ctx.save_for_backward(patches, weight)
        ctx.padding, ctx.size = padding, (height, width)
        filtered = torch.addmm(bias, patches, weight.flatten(1).T)
        return filtered.view(number, height + 2 * padding - 2, width + 2 * padding - 2, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        patches, weight = ctx.saved_tensors
        flat = slope.reshape(-1, slope.shape[-1])
        of_images = None
        if ctx.needs_input_grad[0]:
            of_patches = (flat @ weight.flatten(1)).unflatten(0, (len(slope), -1)).transpose(1, 2)
            of_images = F.fold(of_patches, ctx.size, 3, padding=ctx.padding)
        of_weight = (patches.T @ flat).T.reshape(weight.shape)
        return of_images, of_weight, flat.sum(0), None


class _NormActivationPool(torch.autograd.Function):
    """Instance norm, ReLU and 2 x 2 average pooling of (N, h, w, c) -> (N, h / 2, w / 2, c).

    A few images at a time, so that what is computed in between stays in the cache.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        number, height, width, channels = images.shape
        images = images.reshape(number, -1, channels)
        mean = _sum(images) / (height * width)
        inverse = torch.empty_like(mean)
        pooled = images.new_empty(number, height // 2, width // 2, channels)
        for chunk in _chunks(images):
            centred = images[chunk] - mean[chunk]
            variance = _sum(centred * centred) / (height * width)
            inverse[chunk] = (variance + eps).rsqrt_()
            active = torch.addcmul(shift, centred, inverse[chunk] * scale).relu_()
            pixels = active.view(-1, height // 2, 2, width // 2, 2, channels)
            torch.add(pixels[:, :, 0, :, 0], pixels[:, :, 0, :, 1], out=pooled[chunk])
            pooled[chunk].add_(pixels[:, :, 1, :, 0]).add_(pixels[:, :, 1, :, 1]).mul_(0.25)
        ctx.save_for_backward(images, mean, inverse, scale, shift)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        images, mean, inverse, scale, shift = ctx.saved_tensors
        (number, pixels, channels), (_, height, width, _) = images.shape, slope.shape
        total, aligned = torch.empty_like(mean), torch.empty_like(mean)
        of_images = torch.empty_like(images)
        factor = scale * inverse
        for chunk in _chunks(images):
            centred = images[chunk] - mean[chunk]
            active = torch.addcmul(shift, centred, factor[chunk])
            spread = (slope[chunk] * 0.25).view(-1, height, 1, width, 1, channels)
            of_norm = spread.expand(-1, -1, 2, -1, 2, -1).reshape(centred.shape)
            of_norm = torch.ops.aten.threshold_backward(of_norm, active, 0)
            total[chunk] = _sum(of_norm)
            aligned[chunk] = _sum(of_norm * centred) * inverse[chunk]
            offset = factor[chunk] * total[chunk] / -pixels
            slant = factor[chunk] * inverse[chunk] * aligned[chunk] / -pixels
            torch.addcmul(offset, of_norm, factor[chunk], out=of_images[chunk])
            of_images[chunk].addcmul_(centred, slant)
        return (
            of_images.view(number, 2 * height, 2 * width, channels),
            aligned.sum((0, 1)),
            total.sum((0, 1)),
            None,
        )


def _chunks(images: Tensor) -> list[slice]:
    # Images (N, p, c) that fit a core's cache together.
    size = max(1, CACHED // images[0].numel())
    return [slice(first, first + size) for first in range(0, len(images), size)]


def _sum(images: Tensor) -> Tensor:
    # (N, p, c) -> (N, 1, c). A product with ones: sums over an inner axis are far slower.
    number, pixels, _ = images.shape
    return images.new_ones(1, 1, pixels).expand(number, 1, pixels) @ images
