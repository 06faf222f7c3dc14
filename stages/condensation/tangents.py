"""A network and its derivative along a direction of the parameters, by rules for its layers.

With z(theta) the logits, the pair (z, z'), z' = dz/dtheta v, in one pass through the layers
(forward mode); as ordinary operators it can then be differentiated once in reverse mode, which
gives products with second derivatives: reverse over forward (Griewank and Walther, "Evaluating
Derivatives", 2008, section 5). PyTorch's own forward mode keeps its state in one variable for the
whole process, so that threads cannot use it, and has no rules for the compiled kernels.

Shapes: B = batch, C = classes, image = (ch, h, w).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condensation import fused
from condensation.compiled_blocks import FirstBlock, WinogradBlock
from condensation.dual_blocks import DualFirstBlock, DualWinogradBlock
from condensation.layers import AveragePool, MaxPool
from condensation.normalisation import BatchNorm, LayerNorm

Values = Mapping[str, Tensor]
"""Parameters or their slopes, by name; a slope that is missing is zero."""


class Pair(NamedTuple):
    """A value, and its slope along the direction; None is zero."""

    value: Tensor
    slope: Tensor | None


HEAD = (nn.Flatten, nn.Linear, nn.Identity)
"""What may follow the blocks of a network that goes by kernels: linear layers, and linear maps."""

Rule = Callable[[nn.Module, Values, Values, Pair], Pair]
"""`(layer, its parameters and constants, their slopes, input) -> output`."""


def has_rules(module: nn.Module) -> bool:
    """Whether all layers of the module have rules; batch norms once they are frozen."""
    return type(module) is nn.Sequential and all(
        type(layer) in RULES and not (isinstance(layer, BatchNorm) and not layer.frozen)
        for layer in module
    )


def tangent_pass(module: nn.Sequential, theta: Values, vector: Values, images: Tensor) -> Pair:
    """Return the logits (B, C) and their slope along the vector, both differentiable once.

    Args:
        module: Layers that have rules.
        theta: Parameters and constants of all layers.
        vector: The direction, of the parameters that move.
        images: (B, ch, h, w); they may require a gradient.
    """
    names, layers = zip(*module.named_children(), strict=True)
    own, moving = (by_layer(values, names) for values in (theta, vector))
    at, position = Pair(images, None), 0
    while position < len(layers):
        block = slice(position, position + 4)
        done = _compiled(layers[block], own[block], moving[block], at)
        if done is not None:
            at, position = done, position + 4
            continue
        layer = layers[position]
        at = RULES[type(layer)](layer, own[position], moving[position], at)
        position += 1
    return at


def in_kernels(module: nn.Module, images: Tensor) -> bool:
    """Whether images (B, ch, h, w) go through blocks that compiled kernels take, and `HEAD`.

    The first block is of few channels; of one alone, kernels are not faster.
    """
    if type(module) is not nn.Sequential:
        return False
    layers, at, taken = list(module), images.detach(), 0
    while fused.is_block(layers[:4]) and fused.fits(at, layers[0]):
        convolution = layers[0]
        assert isinstance(convolution, nn.Conv2d)
        if fused.kernel_for(at, convolution) is not (WinogradBlock if taken else FirstBlock):
            return False
        height, width = fused.filtered_size(at, convolution)
        at = at.new_empty(len(at), convolution.out_channels, height // 2, width // 2)
        layers, taken = layers[4:], taken + 1
    return taken > 1 and all(type(layer) in HEAD for layer in layers)


def by_layer(values: Values, names: Sequence[str]) -> list[dict[str, Tensor]]:
    """Return of each layer its values, by their own names; empty where it has none."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in values.items():
        layer, _, own = name.rpartition(".")
        found[layer][own] = value
    return [found[name] for name in names]


def _compiled(
    block: Sequence[nn.Module], own: Sequence[Values], moving: Sequence[Values], at: Pair
) -> Pair | None:
    # A block of ConvNet by compiled kernels, if there is one that takes it.
    if not fused.is_block(block) or not fused.fits(at.value, block[0]):
        return None
    convolution, norm = block[:2]
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.GroupNorm)
    # Detached: `DualFirstBlock` can be differentiated by its images, too.
    kernel = fused.kernel_for(at.value.detach(), convolution)
    if kernel is None:
        return None
    padding = int(convolution.padding[0])
    (first, second), moving = own[:2], moving[:2]
    if not any(moving) and at.slope is None:
        values = (first["weight"], first["bias"], second["weight"], second["bias"], norm.eps)
        if kernel is FirstBlock and not at.value.requires_grad:
            value = FirstBlock.apply(at.value, *values, padding)
        elif kernel is WinogradBlock:
            channels_last = at.value.permute(0, 2, 3, 1)
            value = WinogradBlock.apply(channels_last, *values, channels_last.dtype)
        else:
            return None
        return Pair(value.permute(0, 3, 1, 2), None)
    (weight_slope, bias_slope), (scale_slope, shift_slope) = (
        [slopes.get(key, torch.zeros_like(values[key])) for key in ("weight", "bias")]
        for slopes, values in zip(moving, (first, second), strict=True)
    )
    parameters = torch.stack([second["weight"], second["bias"], first["bias"]])
    parameter_slopes = torch.stack([scale_slope, shift_slope, bias_slope])
    arguments = (first["weight"], weight_slope, parameters, parameter_slopes, norm.eps)
    if kernel is FirstBlock and at.slope is None:
        pair = DualFirstBlock.apply(at.value, *arguments, padding)
    elif kernel is WinogradBlock:
        slope = torch.zeros_like(at.value) if at.slope is None else at.slope
        images, image_slopes = (each.permute(0, 2, 3, 1) for each in (at.value, slope))
        pair = DualWinogradBlock.apply(images, image_slopes, *arguments)
    else:
        return None
    return Pair(*(each.permute(0, 3, 1, 2) for each in pair))


def _sum(*parts: Tensor | None) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return sum(there[1:], start=there[0]) if there else None


def linear(layer: nn.Module, own: Values, moving: Values, at: Pair) -> Pair:
    """Give y = W x + b, y' = W x' + W' x + b'."""

    def apply(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(
                inputs, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups
            )
        return F.linear(inputs, weight, bias)

    slope = None if at.slope is None else apply(at.slope, own["weight"], None)
    if moving:
        slope = _sum(slope, apply(at.value, moving["weight"], moving.get("bias")))
    return Pair(apply(at.value, own["weight"], own.get("bias")), slope)


def norm(layer: nn.Module, own: Values, moving: Values, at: Pair) -> Pair:
    """Group and layer norm: n = s (x - mean x), n' = s (x' - mean x' - n mean(n x')).

    y = scale n + shift, y' = scale n' + scale' n + shift'; s is 1 / standard deviation.
    """
    assert isinstance(layer, nn.GroupNorm | LayerNorm)
    groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else 1
    # Scale and shift: of each channel, or of each place.
    per_channel = (-1, 1, 1) if isinstance(layer, nn.GroupNorm) else at.value.shape[1:]
    grouped = at.value.flatten(1).unflatten(1, (groups, -1))
    centred = grouped - grouped.mean(2, keepdim=True)
    inverse = (centred.square().mean(2, keepdim=True) + layer.eps).rsqrt()
    normalised = centred * inverse
    slope = None
    if at.slope is not None:
        moved = at.slope.flatten(1).unflatten(1, (groups, -1))
        moved = moved - moved.mean(2, keepdim=True)
        moved = inverse * (moved - normalised * (normalised * moved).mean(2, keepdim=True))
        slope = moved.view(at.value.shape)
    return _scaled(own, moving, per_channel, Pair(normalised.view(at.value.shape), slope))


def _scaled(own: Values, moving: Values, shape: Sequence[int], at: Pair) -> Pair:
    # y = scale n + shift, y' = scale n' + scale' n + shift'.
    scale, shift = (own[key].view(shape) for key in ("weight", "bias"))
    slope = None if at.slope is None else at.slope * scale
    if moving:
        by_scale, by_shift = (moving[key].view(shape) for key in ("weight", "bias"))
        slope = _sum(slope, at.value * by_scale + by_shift)
    return Pair(at.value * scale + shift, slope)


def frozen_batch_norm(layer: nn.Module, own: Values, moving: Values, at: Pair) -> Pair:
    """Give y = scale (x - mean) / deviation + shift, whose mean and deviation are constants."""
    assert isinstance(layer, BatchNorm)
    inverse = torch.rsqrt(own["variance"] + layer.eps)[:, None, None]
    normalised = (at.value - own["mean"][:, None, None]) * inverse
    slope = None if at.slope is None else at.slope * inverse
    return _scaled(own, moving, (-1, 1, 1), Pair(normalised, slope))


def rectifier(layer: nn.Module, own: Values, moving: Values, at: Pair) -> Pair:
    """ReLU, also leaky: the slope goes through where the value does."""
    value = layer(at.value)
    if at.slope is None:
        return Pair(value, None)
    below = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
    return Pair(value, torch.where(at.value > 0, at.slope, below * at.slope))


def smooth(derivative: Callable[[Tensor], Tensor]) -> Rule:
    """Return the rule of an activation whose derivative is given."""

    def rule(layer: nn.Module, own: Values, moving: Values, at: Pair) -> Pair:
        slope = None if at.slope is None else derivative(at.value) * at.slope
        return Pair(layer(at.value), slope)

    return rule


def _of_sigmoid(inputs: Tensor) -> Tensor:
    value = torch.sigmoid(inputs)
    return value * (1 - value)


def _of_silu(inputs: Tensor) -> Tensor:
    value = torch.sigmoid(inputs)
    return value * (1 + inputs * (1 - value))


def max_pool(layer: nn.Module, own: Values, moving: Values, at: Pair) -> Pair:
    """The slope of the place that has the maximum."""
    assert isinstance(layer, nn.MaxPool2d)
    value, places = F.max_pool2d(
        at.value, layer.kernel_size, layer.stride, layer.padding, return_indices=True
    )
    if at.slope is None:
        return Pair(value, None)
    slope = at.slope.flatten(2).gather(2, places.flatten(2)).view(value.shape)
    return Pair(value, slope)


def without_parameters(layer: nn.Module, own: Values, moving: Values, at: Pair) -> Pair:
    """A linear map without parameters: the same for the slope."""
    return Pair(layer(at.value), None if at.slope is None else layer(at.slope))


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Conv2d: linear,
    nn.GroupNorm: norm,
    LayerNorm: norm,
    BatchNorm: frozen_batch_norm,
    nn.ReLU: rectifier,
    nn.LeakyReLU: rectifier,
    nn.Sigmoid: smooth(_of_sigmoid),
    nn.SiLU: smooth(_of_silu),
    nn.Softplus: smooth(torch.sigmoid),
    nn.MaxPool2d: max_pool,
    MaxPool: max_pool,
    AveragePool: without_parameters,
    nn.Flatten: without_parameters,
    nn.Identity: without_parameters,
}
