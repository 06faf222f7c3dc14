"""Images of another size.

Shapes: N = number of images, image = (ch, h, w).
"""

import torch.nn.functional as F
from torch import Tensor

_BLOCK = 1000
"""Images that are resized at once: as floats they take four times the memory."""


def resize(images: Tensor, size: int) -> Tensor:
    """Return uint8 images (N, ch, h, w) as (N, ch, size, size), from their central squares.

    Linear interpolation; where the image gets smaller, each new pixel is a weighted mean of all
    old ones that it covers (antialiasing).
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    if height == width == size:
        return images
    top, left = (height - side) // 2, (width - side) // 2
    square = images[..., top : top + side, left : left + side]
    resized = images.new_empty(*images.shape[:2], size, size)
    for part, place in zip(square.split(_BLOCK), resized.split(_BLOCK), strict=True):
        values = F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
        place.copy_(values.round().clamp(0, 255))
    return resized
