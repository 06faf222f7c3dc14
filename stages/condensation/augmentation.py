"""Random changes of images. One function each, registered in `AUGMENTATIONS`.

What is random is drawn first, as numbers; applying it is then a fixed, differentiable function.

Shapes: B = batch, image = (ch, h, w).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from condensation.affine import places, rotations, shifts
from condensation.devices import to_device
from condensation.siamese_augmentation import siamese, siamese_without_flip


class Augmentation(Protocol):
    """One draw: a dataclass of tensors, each with one entry for each image, or one for all."""

    def apply(self, images: Tensor) -> Tensor:
        """Apply the draw to images (..., B, ch, h, w), normalised; differentiable by them.

        Of several batches, the draws of the first come first.
        """
        ...


Draw = Callable[[int, tuple[int, int], torch.Generator], Augmentation]
"""`(num_images, (height, width), generator)` -> a draw."""


CROP_PADDING = 4
"""Pixels added on each side before a crop of the image's own size."""
SCALE_RANGE = 0.2
"""Height and width each change by a factor from 1 - this to 1 + this."""
ROTATION_RANGE = 45
"""Degrees, to either side."""

CROP, SCALE, ROTATE = range(3)


@dataclass(frozen=True)
class CropScaleRotate:
    """One draw: a crop, a scale or a rotation for each image.

    Attributes:
        kind: (B,) int64, `CROP`, `SCALE` or `ROTATE`.
        shift: (B, 2) int64, pixels by which a crop moves the image to the left and up.
        scale: (B, 2), factors of height and width.
        degrees: (B,) int64, by which it is turned.
    """

    kind: Tensor
    shift: Tensor
    scale: Tensor
    degrees: Tensor

    def matrices(self, size: tuple[int, int]) -> Tensor:
        """Return matrices (B, 2, 3), from places in the result to places in the image."""
        pixels = torch.tensor(size)
        scale = (self.scale * pixels).floor() / pixels
        scaling = torch.zeros(len(self.kind), 2, 3)
        scaling[:, 0, 0], scaling[:, 1, 1] = 1 / scale[:, 1], 1 / scale[:, 0]
        turns = rotations(torch.deg2rad(self.degrees.float()), size)
        changes = torch.stack([shifts(self.shift, size), scaling, turns])
        return changes[self.kind, torch.arange(len(self.kind))]

    def apply(self, images: Tensor) -> Tensor:
        """Apply the draw to images (..., B, ch, h, w), normalised; differentiable by them."""
        return move(images, self.matrices((images.shape[-2], images.shape[-1])), self.kind)


def move(images: Tensor, matrices: Tensor, kind: Tensor) -> Tensor:
    """Move each pixel of images (..., B, ch, h, w); differentiable by them.

    Args:
        images: One batch, or several of B images each; P images in all.
        matrices: (P, 2, 3), from places in the result to places in the image, both from -1 to 1.
        kind: (P,). A rotated image is interpolated by cubic polynomials; a cropped or scaled one
            takes the nearest pixel. A scaled image takes 0 (the mean of the real images) from
            outside, any other the mean of its batch.
    """
    # `grid_sample` fills with 0: what is filled with the mean has it taken away and given back.
    mean = images.mean((-4, -2, -1), keepdim=True).expand(*images.shape[:-2], 1, 1)
    flat, fill = images.flatten(0, -4), mean.flatten(0, -4)
    factor = to_device((kind != SCALE).to(fill.dtype), fill.device)
    fill = fill * factor[:, None, None, None]
    parts, order = [], []
    for mode, chosen in (("nearest", kind != ROTATE), ("bicubic", kind == ROTATE)):
        where = chosen.nonzero()[:, 0]
        if len(where):
            there = to_device(where, flat.device)
            own, outside = flat[there], fill[there]
            own_matrices = to_device(matrices[where].to(flat.dtype), flat.device)
            grid = places(own_matrices, (images.shape[-2], images.shape[-1]))
            parts.append(F.grid_sample(own - outside, grid, mode, align_corners=False) + outside)
            order.append(where)
    back = to_device(torch.cat(order).argsort(), flat.device)
    return torch.cat(parts)[back].view_as(images)


def crop_scale_rotate(
    num_images: int, size: tuple[int, int], generator: torch.Generator
) -> CropScaleRotate:
    """Exactly one of crop, scale and rotate for each image, as published for MNIST.

    Zhao, Mopuri and Bilen, ICLR 2021 (published code): crop pads 4 pixels with the mean and begins
    at one of the first 8; scale makes height and width each int(28 U(0.8, 1.2)) pixels, takes the
    nearest and fills with 0; rotate turns by -45 to 44 whole degrees and fills with the mean.
    Differences: a scaled image stays centred to the half pixel, and rotate interpolates by cubic
    convolution (there: cubic splines) and fills each channel with its own mean (there: with one).
    """
    kind = torch.randint(3, (num_images,), generator=generator)
    shift = torch.randint(-CROP_PADDING, CROP_PADDING, (num_images, 2), generator=generator)
    scale = 1 + SCALE_RANGE * (2 * torch.rand(num_images, 2, generator=generator) - 1)
    degrees = torch.randint(-ROTATION_RANGE, ROTATION_RANGE, (num_images,), generator=generator)
    return CropScaleRotate(kind, shift, scale, degrees)


@dataclass(frozen=True)
class Shift:
    """One draw: each image moved by whole pixels; its border goes on outside.

    Attributes:
        pixels: (B, 2) int64, how far the image moves up and to the left.
    """

    pixels: Tensor

    def apply(self, images: Tensor) -> Tensor:
        """Apply the draw to images (..., B, ch, h, w); differentiable by them."""
        flat = images.flatten(0, -4)
        number, channels, *size = flat.shape
        pixels = to_device(self.pixels, images.device)
        rows, columns = (
            (torch.arange(side, device=images.device) + pixels[:, axis, None]).clamp(0, side - 1)
            for axis, side in enumerate(size)
        )
        image = torch.arange(number, device=images.device)[:, None, None, None]
        channel = torch.arange(channels, device=images.device)[:, None, None]
        moved = flat[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
        return moved.view_as(images)


SHIFT = 2
"""Pixels, in either direction, that `shift` moves an image by."""


def shift(num_images: int, size: tuple[int, int], generator: torch.Generator) -> Shift:
    """Move each image by up to two pixels in both directions: a crop of the bordered image."""
    return Shift(torch.randint(-SHIFT, SHIFT + 1, (num_images, 2), generator=generator))


def apply_augmentation(images: Tensor, augmentation: Augmentation) -> Tensor:
    """Apply a draw to images (..., B, ch, h, w), normalised; differentiable by them."""
    return augmentation.apply(images)


def joined(draws: Sequence[Augmentation]) -> Augmentation:
    """Return the draws of several batches as one, the first batch's first."""
    kind = type(draws[0])
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(*(torch.cat([getattr(draw, name) for draw in draws]) for name in names))


AUGMENTATIONS: dict[str, Draw | None] = {
    "none": None,
    "shift": shift,
    "crop_scale_rotate": crop_scale_rotate,
    "dsa": siamese,
    "dsa_without_flip": siamese_without_flip,
}
