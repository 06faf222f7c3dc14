"""Differentiable Siamese augmentation (DSA).

Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021; the
strengths are those of the published code (`ParamDiffAug`, mode "S"): one of six families for a
whole batch, drawn anew for each batch, with numbers drawn for each image. Siamese is to apply one
draw for one image to every image of a real batch and of a synthetic one alike.

Shapes: B = batch, image = (ch, h, w), P = h w pixels.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from condensation.affine import places, rotations, shifts
from condensation.devices import to_device

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
BRIGHTNESS = 1.0
"""What is added to all pixels: U(-1/2, 1/2) times this, in units of the standard deviation."""
SATURATION = 2.0
"""Factor of a pixel's distance from the mean of its channels: U(0, 1) times this."""
CONTRAST = 0.5
"""Factor of a pixel's distance from the mean of its image: U(0, 1) plus this."""
CROP_SHARE = 0.125
"""A crop moves by up to this share of height and width, to either side."""
CUTOUT_SHARE = 0.5
"""Height and width of what is cut out, as shares of the image's."""
FLIP_PROBABILITY = 0.5
SCALE = 1.2
"""Height and width are each divided by U(1 / this, this)."""
ROTATION = 15
"""Degrees, to either side."""


@dataclass(frozen=True)
class SiameseAugmentation:
    """One draw; without effect but for the family that was drawn.

    Every attribute has one entry for each image, or a single one, which is applied to all.

    Attributes:
        matrices: (B, 2, 3), from places in the result to places in the image, both from -1 to 1;
            interpolated linearly, and 0 (the mean of the real images) from outside.
        brightness: (B,), what is added.
        saturation: (B,), factor of the distance from the mean of the channels.
        contrast: (B,), factor of the distance from the mean of the image.
        cut: (B, 2) int64, first row and column of what is set to 0; outside the image for nothing.
    """

    matrices: Tensor
    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    cut: Tensor

    def apply(self, images: Tensor) -> Tensor:
        """Apply the draw to images (..., B, ch, h, w), normalised; differentiable by them."""
        shape, images = images.shape, images.flatten(0, -4)
        count, _, height, width = images.shape
        matrices = to_device(self.matrices.to(images.dtype), images.device).expand(count, -1, -1)
        moved = sample(images, places(matrices, (height, width)))

        def per_image(values: Tensor) -> Tensor:
            on_device = to_device(values.to(images.dtype), images.device)
            return on_device[:, None, None, None]

        # Written as differences, so that a factor of 1 changes no bit.
        bright = moved + per_image(self.brightness)
        grey = bright.mean(1, keepdim=True)
        saturated = bright + per_image(self.saturation - 1) * (bright - grey)
        mean = saturated.mean((1, 2, 3), keepdim=True)
        coloured = saturated + per_image(self.contrast - 1) * (saturated - mean)

        first = to_device(self.cut, images.device)
        rows, columns = (
            (torch.arange(side, device=images.device) - first[:, axis, None])
            for axis, side in enumerate((height, width))
        )
        inside_rows = (rows >= 0) & (rows < share_of(height, CUTOUT_SHARE))
        inside_columns = (columns >= 0) & (columns < share_of(width, CUTOUT_SHARE))
        hole = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
        return torch.where(hole, 0.0, coloured).view(shape)


# So that a CUDA graph can be given new ones (`recording.py`).
register_pytree_node(
    SiameseAugmentation,
    lambda draw: ([getattr(draw, field.name) for field in fields(draw)], None),
    lambda values, _: SiameseAugmentation(*values),
)


def share_of(side: int, share: float) -> int:
    """Return a share of a side in whole pixels, rounded half up."""
    return int(side * share + 0.5)


def sample(images: Tensor, grid: Tensor) -> Tensor:
    """Interpolate images (B, ch, h, w) linearly at places (B, h, w, 2); 0 from outside.

    As `torch.nn.functional.grid_sample`, which on an accelerator has no deterministic derivative by
    the images. There it is two products: of a pixel with weights max(0, 1 - distance) in each
    direction, whose derivatives are products again.
    """
    if images.device.type == "cpu":
        return F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    return sample_by_products(images, grid)


def sample_by_products(images: Tensor, grid: Tensor) -> Tensor:
    """Return what `sample` does, by products with weights (B, P, w) and (B, P, h)."""
    height, width = images.shape[-2:]

    def weights(places: Tensor, side: int) -> Tensor:
        pixels = ((places.flatten(1) + 1) * side - 1) / 2
        distance = pixels[:, :, None] - torch.arange(side, device=images.device)
        return (1 - distance.abs()).clamp_min(0)

    by_column = images @ weights(grid[..., 0], width).transpose(1, 2)[:, None]  # (B, ch, h, P)
    by_row = weights(grid[..., 1], height).transpose(1, 2)[:, None]  # (B, 1, h, P)
    sampled: Tensor = (by_column * by_row).sum(2).unflatten(-1, (height, width))
    return sampled


def _draw(
    families: tuple[str, ...], num_images: int, size: tuple[int, int], generator: torch.Generator
) -> SiameseAugmentation:
    # All numbers are drawn, whatever the family: the stream goes on alike.
    height, width = size
    chosen = families[int(torch.randint(len(families), (), generator=generator))]
    uniform = torch.rand(num_images, 7, generator=generator)
    crop_range = torch.tensor([share_of(width, CROP_SHARE), share_of(height, CROP_SHARE)])
    shift = _whole_numbers(-crop_range, crop_range, num_images, generator)
    cut_size = torch.tensor([share_of(side, CUTOUT_SHARE) for side in size])
    last = torch.tensor(size) - cut_size % 2
    cut = _whole_numbers(torch.zeros_like(last), last, num_images, generator) - cut_size // 2

    matrices = shifts(shift if chosen == "crop" else torch.zeros_like(shift), size)
    if chosen == "rotate":
        matrices = rotations(math.radians(ROTATION) * (2 * uniform[:, 6] - 1), size)
    elif chosen == "flip":
        matrices[:, 0, 0] = torch.where(uniform[:, 3] < FLIP_PROBABILITY, -1.0, 1.0)
    elif chosen == "scale":
        matrices[:, 0, 0], matrices[:, 1, 1] = (1 / SCALE + (SCALE - 1 / SCALE) * uniform[:, 4:6]).T
    nothing, whole = torch.zeros(num_images), torch.ones(num_images)
    color = chosen == "color"
    return SiameseAugmentation(
        matrices,
        BRIGHTNESS * (uniform[:, 0] - 0.5) if color else nothing,
        SATURATION * uniform[:, 1] if color else whole,
        CONTRAST + uniform[:, 2] if color else whole,
        cut if chosen == "cutout" else torch.tensor(size).expand(num_images, 2),
    )


def _whole_numbers(
    first: Tensor, last: Tensor, num_images: int, generator: torch.Generator
) -> Tensor:
    # (num_images, len(first)) whole numbers from `first` to `last`, each as likely.
    columns = [
        torch.randint(int(low), int(high) + 1, (num_images,), generator=generator)
        for low, high in zip(first, last, strict=True)
    ]
    return torch.stack(columns, 1)


def siamese(
    num_images: int, size: tuple[int, int], generator: torch.Generator
) -> SiameseAugmentation:
    """One of color, crop, cutout, flip, scale and rotate for all images, as published.

    Zhao and Bilen, ICML 2021 (published code). Color: brightness + U(-0.5, 0.5), saturation times
    U(0, 2), contrast times U(0.5, 1.5). Crop: moved by up to an eighth. Cutout: half the height and
    width. Flip: from side to side, half of the images. Scale: height and width each divided by
    U(1 / 1.2, 1.2). Rotate: U(-15, 15) degrees. Differences: what moves by whole pixels is
    interpolated too (equal up to rounding), and a turn keeps lengths in images that are not square.
    """
    return _draw(FAMILIES, num_images, size, generator)


def siamese_without_flip(
    num_images: int, size: tuple[int, int], generator: torch.Generator
) -> SiameseAugmentation:
    """The same without flips: a digit from the other side is none."""
    return _draw(tuple(f for f in FAMILIES if f != "flip"), num_images, size, generator)
