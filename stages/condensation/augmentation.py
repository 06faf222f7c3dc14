"""Random changes of images. One function each, registered in `AUGMENTATIONS`.

What is random is drawn first, as numbers; applying it is then a fixed, differentiable function.

Shapes: B = batch, image = (ch, h, w).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from condensation.affine import rotations, shifts
from condensation.siamese_augmentation import siamese, siamese_without_flip


class Augmentation(Protocol):
    """One draw: a dataclass of tensors, each with one entry for each image."""

    def apply(self, images: Tensor) -> Tensor:
        """Apply the draw to images (B, ch, h, w), normalised; differentiable by them."""
        ...


Draw = Callable[[int, tuple[int, int], torch.Generator], Augmentation]
"""`(num_images, (height, width), generator)` -> a draw."""


@dataclass(frozen=True)
class AffineAugmentation:
    """One draw: an affine change for each image.

    Attributes:
        matrices: (B, 2, 3), from places in the result to places in the image, both from -1 to 1.
        scaled: (B,) bool. A scaled image takes the nearest pixel, and 0 (the mean of the real
            images) from outside; any other is interpolated by cubic polynomials, and takes the mean
            of the batch from outside.
    """

    matrices: Tensor
    scaled: Tensor

    def apply(self, images: Tensor) -> Tensor:
        """Apply the draw to images (B, ch, h, w), normalised; differentiable by them."""
        scaled = self.scaled.to(images.device)[:, None, None, None]
        grid = F.affine_grid(self.matrices.to(images), list(images.shape), align_corners=False)
        # `grid_sample` fills with 0: what is filled with the mean has it taken away and given back.
        mean = images.mean((0, 2, 3), keepdim=True)
        others = F.grid_sample(images - mean, grid, mode="bicubic", align_corners=False) + mean
        return torch.where(
            scaled, F.grid_sample(images, grid, mode="nearest", align_corners=False), others
        )


CROP_PADDING = 4
"""Pixels added on each side before a crop of the image's own size."""
SCALE_RANGE = 0.2
"""Height and width each change by a factor from 1 - this to 1 + this."""
ROTATION_RANGE = 45
"""Degrees, to either side."""


def crop_scale_rotate(
    num_images: int, size: tuple[int, int], generator: torch.Generator
) -> AffineAugmentation:
    """Exactly one of crop, scale and rotate for each image, as published for MNIST.

    Zhao, Mopuri and Bilen, ICLR 2021 (published code): crop pads 4 pixels with the mean; scale
    multiplies height and width each by U(0.8, 1.2), takes the nearest pixel and fills with 0;
    rotate turns by U(-45, 45) degrees and fills with the mean. Differences: sizes and angles are
    not rounded to whole pixels and degrees, a crop moves by -4 to 4 pixels (there: to 3), and
    rotate interpolates by cubic convolution (there: cubic splines).
    """
    kind = torch.randint(3, (num_images,), generator=generator)
    shift = torch.randint(-CROP_PADDING, CROP_PADDING + 1, (num_images, 2), generator=generator)
    scale = 1 + SCALE_RANGE * (2 * torch.rand(num_images, 2, generator=generator) - 1)
    angle = math.radians(ROTATION_RANGE) * (2 * torch.rand(num_images, generator=generator) - 1)

    scaling = torch.zeros(num_images, 2, 3)
    scaling[:, 0, 0] = 1 / scale[:, 1]
    scaling[:, 1, 1] = 1 / scale[:, 0]
    changes = torch.stack([shifts(shift, size), scaling, rotations(angle, size)])
    matrices = changes[kind, torch.arange(num_images)]
    return AffineAugmentation(matrices, kind == 1)


def apply_augmentation(images: Tensor, augmentation: Augmentation) -> Tensor:
    """Apply a draw to images (B, ch, h, w), normalised; differentiable with respect to them."""
    return augmentation.apply(images)


AUGMENTATIONS: dict[str, Draw | None] = {
    "none": None,
    "crop_scale_rotate": crop_scale_rotate,
    "dsa": siamese,
    "dsa_without_flip": siamese_without_flip,
}
