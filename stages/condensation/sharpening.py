"""Averages of images with the pixel values of single ones.

Shapes: S = images to sharpen, n = images of the class, image = (ch, h, w).
"""

import torch
from torch import Tensor


def sharpen(images: Tensor, members: Tensor) -> Tensor:
    """Give each image the pixel values of an image of the class, in the order of its own pixels.

    An average is grey where its images disagree, which no image of the class is, and its contrast
    is what instance norm divides by. Histogram specification (Gonzalez and Woods, "Digital Image
    Processing", section 3.3): in each channel the k-th smallest pixel becomes the mean, over the
    class, of the k-th smallest pixel. Of equal pixels the first in the image are the smaller.

    Args:
        images: (S, ch, h, w), in pixel values from 0 to 255.
        members: (n, ch, h, w) uint8, all images of the class.

    Returns:
        (S, ch, h, w) float32, in pixel values from 0 to 255.
    """
    values = members.flatten(2).sort(2).values.mean(0, dtype=torch.float64).float()
    order = images.flatten(2).argsort(dim=2, stable=True)
    sharp = torch.empty_like(order, dtype=torch.float32)
    sharp.scatter_(2, order, values.expand_as(order).contiguous())
    return sharp.view(images.shape)
