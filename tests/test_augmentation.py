"""Augmentation against slow, one-image references."""

import math

import pytest
import torch
from torch import Tensor

from condensation.augmentation import (
    AUGMENTATIONS,
    CROP_PADDING,
    AffineAugmentation,
    apply_augmentation,
    crop_scale_rotate,
)
from condensation.randomness import generator

SIZE = (12, 12)
DRAWS = [draw for draw in AUGMENTATIONS.values() if draw is not None]


def images(num_images: int) -> Tensor:
    return torch.randn(num_images, 2, *SIZE, generator=generator(0, "images"), dtype=torch.float64)


def matrix(rows: list[list[float]], scaled: bool = False) -> AffineAugmentation:
    return AffineAugmentation(torch.tensor([rows], dtype=torch.float64), torch.tensor([scaled]))


def kind(rows: Tensor) -> str:
    if rows[0, 1] != 0:
        return "rotate"
    return "crop" if rows[0, 0] == 1 and rows[1, 1] == 1 else "scale"


@pytest.mark.parametrize("draw", DRAWS)
def test_the_same_draw_gives_the_same_images_and_they_are_differentiable(draw) -> None:  # type: ignore[no-untyped-def]
    first, again, other = (draw(4, SIZE, generator(0, stream)) for stream in "aab")
    batch = images(4)
    assert torch.equal(apply_augmentation(batch, first), apply_augmentation(batch, again))
    assert not torch.equal(apply_augmentation(batch, first), apply_augmentation(batch, other))
    assert torch.autograd.gradcheck(
        lambda x: apply_augmentation(x, first), batch[:, :, :6, :6].clone().requires_grad_()
    )


def test_each_image_is_cropped_scaled_or_rotated() -> None:
    draw = crop_scale_rotate(3000, SIZE, generator(0))
    kinds = [kind(rows) for rows in draw.matrices]
    for name in ("crop", "scale", "rotate"):
        assert kinds.count(name) == pytest.approx(1000, abs=100)
    for rows, name, scaled in zip(draw.matrices, kinds, draw.scaled, strict=True):
        assert scaled == (name == "scale")
        if name == "scale":
            assert 0.8 <= 1 / rows[0, 0] <= 1.2 and 0.8 <= 1 / rows[1, 1] <= 1.2
        if name == "rotate":
            assert rows[0, 0] >= math.cos(math.radians(45.001))


@pytest.mark.parametrize("shift", [(0, 0), (CROP_PADDING, -CROP_PADDING), (1, 3)])
def test_a_crop_is_a_cut_from_the_image_padded_with_the_mean(shift: tuple[int, int]) -> None:
    batch = images(1)
    right, down = shift
    rows = [[1.0, 0.0, 2 * right / SIZE[1]], [0.0, 1.0, 2 * down / SIZE[0]]]
    result = apply_augmentation(batch, matrix(rows))
    padded = batch.mean((0, 2, 3)).view(1, 2, 1, 1).repeat(1, 1, 20, 20)
    padded[:, :, 4:16, 4:16] = batch
    expected = padded[:, :, 4 + down : 16 + down, 4 + right : 16 + right]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_a_quarter_turn_moves_every_pixel_to_its_place() -> None:
    batch = images(1)
    turned = apply_augmentation(batch, matrix([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(turned, batch.rot90(1, (2, 3)), rtol=0, atol=1e-12)


def test_a_turn_keeps_lengths_in_images_that_are_not_square() -> None:
    draw = crop_scale_rotate(500, (10, 20), generator(0))
    turn = next(rows for rows in draw.matrices if kind(rows) == "rotate")
    # In pixels: half the size times the place. A turn there is orthogonal.
    to_pixels = torch.diag(torch.tensor([10.0, 5.0]))
    in_pixels = to_pixels @ turn[:, :2] @ to_pixels.inverse()
    torch.testing.assert_close(in_pixels @ in_pixels.T, torch.eye(2), rtol=0, atol=1e-6)


def test_shrinking_fills_with_zero_and_keeps_the_middle() -> None:
    batch = torch.ones(1, 2, *SIZE, dtype=torch.float64)
    result = apply_augmentation(batch, matrix([[1.25, 0.0, 0.0], [0.0, 1.25, 0.0]], scaled=True))
    assert result[0, :, 0, 0].abs().max() == 0 and result[0, :, 6, 6].eq(1).all()
