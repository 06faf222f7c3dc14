"""Siamese augmentation against a slow reference: one image, one pixel at a time."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from condensation.augmentation import AUGMENTATIONS, apply_augmentation
from condensation.randomness import generator
from condensation.siamese_augmentation import (
    FAMILIES,
    SiameseAugmentation,
    sample,
    sample_by_products,
    siamese,
    siamese_without_flip,
)

SIZE = (12, 10)
NUM_IMAGES = 4


def images(num_images: int = NUM_IMAGES, channels: int = 3) -> Tensor:
    draw = generator(0, "images")
    return torch.randn(num_images, channels, *SIZE, generator=draw, dtype=torch.float64)


def family(draw: SiameseAugmentation) -> str:
    """Return what was drawn, from the numbers."""
    identity = torch.eye(2, 3)
    if (draw.brightness != 0).any():
        return "color"
    if (draw.cut < torch.tensor(SIZE)).any():
        return "cutout"
    changed = (draw.matrices - identity).abs().amax(0) > 0
    if changed[:, 2].any():
        return "crop"
    if changed[0, 1]:
        return "rotate"
    return "scale" if changed[1, 1] else "flip"


def draws(name: str, count: int = 1) -> list[SiameseAugmentation]:
    """Return the first draws of a family."""
    found: list[SiameseAugmentation] = []
    for seed in range(1000):
        draw = siamese(NUM_IMAGES, SIZE, generator(seed))
        if family(draw) == name:
            found.append(draw)
        if len(found) == count:
            return found
    raise AssertionError(f"{name} is never drawn")


def reference(image: Tensor, draw: SiameseAugmentation, index: int, name: str) -> Tensor:
    """The published operation of one family on one image (ch, h, w), by its definition."""
    height, width = SIZE
    rows, columns = range(height), range(width)
    result = torch.zeros_like(image)
    if name == "color":
        brightness, saturation, contrast = (
            values[index].item() for values in (draw.brightness, draw.saturation, draw.contrast)
        )
        result = image + brightness
        for row in rows:
            for column in columns:
                mean = result[:, row, column].mean()
                result[:, row, column] = (result[:, row, column] - mean) * saturation + mean
        return (result - result.mean()) * contrast + result.mean()
    if name == "cutout":
        result = image.clone()
        top, left = draw.cut[index].tolist()
        for row in rows:
            for column in columns:
                if top <= row < top + 6 and left <= column < left + 5:
                    result[:, row, column] = 0
        return result
    if name == "flip":
        mirrored = draw.matrices[index, 0, 0] < 0
        return torch.stack([image[:, :, -1 - c if mirrored else c] for c in columns], 2)
    if name == "crop":
        right = round(draw.matrices[index, 0, 2].item() * width / 2)
        down = round(draw.matrices[index, 1, 2].item() * height / 2)
        for row in rows:
            for column in columns:
                if 0 <= row + down < height and 0 <= column + right < width:
                    result[:, row, column] = image[:, row + down, column + right]
        return result
    # Scale and rotate: about the middle of the image, the four neighbours weighted.
    (a, b, _), (c, d, _) = draw.matrices[index].double().tolist()
    for row in rows:
        for column in columns:
            x, y = (column + 0.5) * 2 / width - 1, (row + 0.5) * 2 / height - 1
            from_column = ((a * x + b * y) + 1) * width / 2 - 0.5
            from_row = ((c * x + d * y) + 1) * height / 2 - 0.5
            for i in (math.floor(from_row), math.floor(from_row) + 1):
                for j in (math.floor(from_column), math.floor(from_column) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        weight = (1 - abs(from_row - i)) * (1 - abs(from_column - j))
                        result[:, row, column] += weight * image[:, i, j]
    return result


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_equals_the_reference(name: str, channels: int) -> None:
    batch = images(channels=channels)
    for draw in draws(name, 3):
        expected = torch.stack(
            [reference(image, draw, index, name) for index, image in enumerate(batch)]
        )
        torch.testing.assert_close(apply_augmentation(batch, draw), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_changes_images(name: str) -> None:
    batch = images()
    assert all((apply_augmentation(batch, d) - batch).abs().max() > 0.05 for d in draws(name, 2))


@pytest.mark.parametrize("name", FAMILIES)
def test_images_are_differentiable(name: str) -> None:
    (draw,) = draws(name)
    batch = images()
    assert torch.autograd.gradcheck(draw.apply, batch.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_draw_is_the_same_transform_of_a_real_and_a_synthetic_batch(name: str) -> None:
    """A draw for one image is applied to every image of a batch, whatever its size."""
    single = next(
        draw
        for draw in (siamese(1, SIZE, generator(seed)) for seed in range(1000))
        if family(draw) == name
    )
    real, synthetic = images(7), images(2) * 0.5
    for batch in (real, synthetic):
        together = single.apply(batch)
        each = torch.cat([single.apply(image[None]) for image in batch])
        torch.testing.assert_close(together, each, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        single.apply(torch.cat([real, synthetic])),
        torch.cat([single.apply(real), single.apply(synthetic)]),
        rtol=0,
        atol=1e-12,
    )


def test_one_family_is_drawn_for_all_images_and_each_as_often() -> None:
    drawn = [siamese(2, SIZE, generator(seed)) for seed in range(1200)]
    counts = Counter(map(family, drawn))
    # A quarter of the flips of two images flip neither, and look like nothing.
    assert set(counts) == set(FAMILIES)
    assert all(count == pytest.approx(200, abs=45) for count in counts.values())
    for draw in drawn:
        own = [draw.brightness.any(), (draw.matrices != torch.eye(2, 3)).any()]
        own.append((draw.cut < torch.tensor(SIZE)).any())
        assert sum(map(bool, own)) <= 1


def test_strengths_are_the_published_ones() -> None:
    many = {family(d): d for d in (siamese(4000, SIZE, generator(s)) for s in range(60))}

    def spans(values: Tensor, low: float, high: float) -> bool:
        width = 0.01 * (high - low)
        inside = low - 1e-6 <= values.min() and values.max() <= high + 1e-6
        return bool(inside and values.min() < low + width and values.max() > high - width)

    color, scale, rotate = many["color"], many["scale"].matrices, many["rotate"].matrices
    assert spans(color.brightness, -0.5, 0.5)
    assert spans(color.saturation, 0, 2) and spans(color.contrast, 0.5, 1.5)
    assert spans(scale[:, 0, 0], 1 / 1.2, 1.2) and spans(scale[:, 1, 1], 1 / 1.2, 1.2)
    assert abs(torch.corrcoef(torch.stack([scale[:, 0, 0], scale[:, 1, 1]]))[0, 1]) < 0.1
    to_pixels = SIZE[1] / SIZE[0]  # a turn is one in pixels
    angle = torch.rad2deg(torch.atan2(rotate[:, 1, 0] / to_pixels, rotate[:, 0, 0]))
    assert spans(angle, -15, 15)
    shift = (many["crop"].matrices[:, :, 2] * torch.tensor([SIZE[1], SIZE[0]]) / 2).round()
    assert set(shift[:, 0].tolist()) == {-1, 0, 1}  # int(10 / 8 + 1 / 2)
    assert set(shift[:, 1].tolist()) == {-2, -1, 0, 1, 2}  # int(12 / 8 + 1 / 2)
    cut = many["cutout"].cut
    assert set(cut[:, 0].tolist()) == set(range(-3, 10))  # 6 of 12 rows, about any of 0 to 12
    assert set(cut[:, 1].tolist()) == set(range(-2, 8))  # 5 of 10 columns, about any of 0 to 9
    flipped = (many["flip"].matrices[:, 0, 0] < 0).double().mean().item()
    assert flipped == pytest.approx(0.5, abs=0.04)


def test_digits_are_never_flipped() -> None:
    for seed in range(200):
        draw = siamese_without_flip(3, SIZE, generator(seed))
        assert family(draw) in FAMILIES and (draw.matrices[:, 0, 0] > 0).all()
    assert AUGMENTATIONS["dsa_without_flip"] is siamese_without_flip
    assert AUGMENTATIONS["dsa"] is siamese


@pytest.mark.parametrize("size", [(12, 12), (9, 14)], ids=str)
def test_products_sample_as_the_operator_does(size: tuple[int, int]) -> None:
    """What accelerators use, with its derivative by the images."""
    draw = generator(0, "places")
    batch = torch.randn(3, 2, *size, generator=draw, dtype=torch.float64)
    matrices = torch.eye(2, 3) + 0.3 * torch.randn(3, 2, 3, generator=draw)
    grid = F.affine_grid(matrices.double(), [3, 2, *size], align_corners=False)
    results = []
    for function in (sample, sample_by_products):
        inputs = batch.clone().requires_grad_()
        sampled = function(inputs, grid)
        sampled.square().sum().backward()
        results.append((sampled.detach(), inputs.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
