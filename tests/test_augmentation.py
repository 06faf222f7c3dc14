"""Augmentation against slow, one-image references."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from condensation.affine import places
from condensation.augmentation import (
    AUGMENTATIONS,
    CROP,
    CROP_PADDING,
    ROTATE,
    SCALE,
    CropScaleRotate,
    Shift,
    apply_augmentation,
    crop_scale_rotate,
    joined,
    move,
    shift,
)
from condensation.randomness import generator

SIZE = (12, 12)
DRAWS = [draw for draw in AUGMENTATIONS.values() if draw is not None]


def images(num_images: int, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(num_images, 2, *size, generator=generator(0, "images"), dtype=torch.float64)


def one(kind: int, **values: list[float] | int) -> CropScaleRotate:
    """A draw for one image."""
    numbers = {"shift": [0, 0], "scale": [1.0, 1.0], "degrees": 0} | values
    return CropScaleRotate(torch.tensor([kind]), *(torch.tensor([v]) for v in numbers.values()))


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
    """With the whole pixels and degrees of the published code."""
    draw = crop_scale_rotate(3000, (28, 28), generator(0))
    matrices = draw.matrices((28, 28))
    identity = torch.eye(2)
    for kind in (CROP, SCALE, ROTATE):
        own = draw.kind == kind
        assert own.sum().item() == pytest.approx(1000, abs=100)
        linear, moved = matrices[own, :, :2], matrices[own, :, 2]
        if kind == CROP:
            assert torch.equal(linear, identity.expand_as(linear))
            pixels = moved * 14
            assert pixels.frac().abs().max() < 1e-5
            assert (pixels.min().round().item(), pixels.max().round().item()) == (-4, 3)
        if kind == SCALE:
            sides = 28 / linear.diagonal(dim1=1, dim2=2)
            torch.testing.assert_close(sides, sides.round())
            assert set(sides.round().flatten().int().tolist()) == set(range(22, 34))
        if kind == ROTATE:
            angles = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
            torch.testing.assert_close(angles, angles.round(), rtol=0, atol=1e-4)
            assert set(angles.round().int().tolist()) == set(range(-45, 45))


@pytest.mark.parametrize("pixels", [(0, 0), (CROP_PADDING, -CROP_PADDING), (1, 3)])
def test_a_crop_is_a_cut_from_the_image_padded_with_the_mean(pixels: tuple[int, int]) -> None:
    batch = images(1)
    right, down = pixels
    result = apply_augmentation(batch, one(CROP, shift=[right, down]))
    padded = batch.mean((0, 2, 3)).view(1, 2, 1, 1).repeat(1, 1, 20, 20)
    padded[:, :, 4:16, 4:16] = batch
    expected = padded[:, :, 4 + down : 16 + down, 4 + right : 16 + right]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_a_quarter_turn_moves_every_pixel_to_its_place() -> None:
    batch = images(1)
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]], dtype=torch.float64)
    turned = move(batch, quarter, torch.tensor([ROTATE]))
    torch.testing.assert_close(turned, batch.rot90(1, (2, 3)), rtol=0, atol=1e-12)


def test_a_turn_keeps_lengths_in_images_that_are_not_square() -> None:
    turn = one(ROTATE, degrees=33).matrices((10, 20))[0]
    # In pixels: half the size times the place. A turn there is orthogonal.
    to_pixels = torch.diag(torch.tensor([10.0, 5.0]))
    in_pixels = to_pixels @ turn[:, :2] @ to_pixels.inverse()
    torch.testing.assert_close(in_pixels @ in_pixels.T, torch.eye(2), rtol=0, atol=1e-6)


def test_a_turned_image_is_interpolated_by_cubic_polynomials() -> None:
    """Counter-clockwise, about the middle, in pixels; from outside comes the image's mean."""
    height, width, angle = 10, 14, math.radians(30)
    batch = images(1, (height, width))
    rows = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    columns = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    right = columns * math.cos(angle) - rows * math.sin(angle)
    down = columns * math.sin(angle) + rows * math.cos(angle)
    grid = torch.stack([right / (width / 2), down / (height / 2)], -1)[None]
    mean = batch.mean((2, 3), keepdim=True)
    expected = F.grid_sample(batch - mean, grid, "bicubic", align_corners=False) + mean
    result = apply_augmentation(batch, one(ROTATE, degrees=30))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_a_scaled_image_takes_the_nearest_pixels_from_the_middle() -> None:
    """Of 10 rows it is 8 high, int(10 * 0.85), and of 14 columns 16 wide."""
    batch = images(1, (10, 14))
    expected = torch.zeros_like(batch)
    for row, column in itertools.product(range(10), range(14)):
        above, left = round(4.5 + (row - 4.5) * 10 / 8), round(6.5 + (column - 6.5) * 14 / 16)
        if 0 <= above < 10 and 0 <= left < 14:
            expected[..., row, column] = batch[..., above, left]
    assert torch.equal(apply_augmentation(batch, one(SCALE, scale=[0.85, 1.2])), expected)


def test_shrinking_fills_with_zero_and_keeps_the_middle() -> None:
    batch = torch.ones(1, 2, *SIZE, dtype=torch.float64)
    result = apply_augmentation(batch, one(SCALE, scale=[0.8, 0.8]))
    assert result[0, :, 0, 0].abs().max() == 0 and result[0, :, 6, 6].eq(1).all()


@pytest.mark.parametrize("draw", DRAWS)
def test_several_batches_at_once_are_each_augmented_by_itself(draw) -> None:  # type: ignore[no-untyped-def]
    """Also where the mean of the batch comes in."""
    draws = [draw(4, SIZE, generator(0, index)) for index in range(3)]
    batches = images(12).unflatten(0, (3, 4))
    together = apply_augmentation(batches, joined(draws))
    assert together.shape == batches.shape
    for index, own in enumerate(draws):
        expected = apply_augmentation(batches[index], own)
        torch.testing.assert_close(together[index], expected, rtol=0, atol=1e-12)


def test_a_shift_moves_whole_pixels_and_its_border_goes_on() -> None:
    batch = images(1)
    result = apply_augmentation(batch, Shift(torch.tensor([[2, -1]])))
    assert torch.equal(result[..., :-2, 1:], batch[..., 2:, :-1])
    assert torch.equal(result[..., -1, 1:], batch[..., -1, :-1])
    assert torch.equal(result[..., :-2, 0], batch[..., 2:, 0])
    drawn = shift(500, SIZE, generator(0)).pixels
    assert set(drawn.flatten().tolist()) == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("size", [(28, 28), (5, 8)])
def test_places_are_those_of_pytorch(size: tuple[int, int]) -> None:
    matrices = torch.randn(6, 2, 3, generator=generator(0), dtype=torch.float64)
    expected = F.affine_grid(matrices, [6, 1, *size], align_corners=False)
    torch.testing.assert_close(places(matrices, size), expected, rtol=0, atol=1e-12)
