"""Affine changes of images as matrices for `torch.nn.functional.affine_grid`.

From places in the result to places in the image, both from -1 to 1: in units of half the width and
half the height.

Shapes: B = batch, matrices = (B, 2, 3).
"""

import torch
from torch import Tensor


def shifts(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return matrices that move by pixels (B, 2), to the right and down; size = (height, width)."""
    height, width = size
    matrices = torch.zeros(len(pixels), 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1
    matrices[:, :, 2] = 2 * pixels / torch.tensor([width, height])
    return matrices


def rotations(angle: Tensor, size: tuple[int, int]) -> Tensor:
    """Return matrices that turn by an angle (B,) in radians and keep lengths; size as above."""
    height, width = size
    matrices = torch.zeros(len(angle), 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
    # The units differ where the image is not square, and a turn mixes the two.
    matrices[:, 0, 1] = -angle.sin() * height / width
    matrices[:, 1, 0] = angle.sin() * width / height
    return matrices


def places(matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """Return where each pixel of the result comes from: (B, h, w, 2), for `grid_sample`.

    As `torch.nn.functional.affine_grid` without `align_corners`, whose many small products take
    longer on a CPU than the interpolation.
    """
    rows, columns = (
        (2 * torch.arange(side, dtype=matrices.dtype, device=matrices.device) + 1) / side - 1
        for side in size
    )
    by_column, by_row, moved = matrices.unbind(-1)  # (B, 2) each
    offset = by_row[..., None] * rows + moved[..., None]  # (B, 2, h)
    across = by_column[..., None] * columns  # (B, 2, w)
    return torch.stack([across[:, i, None, :] + offset[:, i, :, None] for i in range(2)], -1)
