"""The first synthetic images: shapes, determinism, and what each method promises."""

import pytest
import torch
from torch import Tensor

from condensation.datasets import Dataset
from condensation.initialisers import INITIALISERS
from condensation.randomness import generator


def pixels(dataset: Dataset, images: Tensor) -> Tensor:
    return images * dataset.std.view(-1, 1, 1) + dataset.mean.view(-1, 1, 1)


@pytest.mark.parametrize("ipc", [1, 2, 5])
@pytest.mark.parametrize("name", INITIALISERS)
def test_shape_type_and_stream(name: str, ipc: int, tiny_dataset: Dataset) -> None:
    first, again, other = (
        INITIALISERS[name](tiny_dataset, ipc, generator(0, stream)) for stream in "aab"
    )
    assert first.shape == (3, ipc, *tiny_dataset.image_shape) and first.dtype == torch.float32
    assert torch.equal(first, again)
    # The mean of a whole class is the same whoever draws it.
    assert name == "mean" and ipc == 1 or not torch.equal(first, other)


def test_noise_is_standard_normal(tiny_dataset: Dataset) -> None:
    images = INITIALISERS["noise"](tiny_dataset, 50, generator(0))
    assert abs(images.mean().item()) < 0.02 and images.std().item() == pytest.approx(1, abs=0.02)


def test_real_are_different_images_of_the_class(tiny_dataset: Dataset) -> None:
    images = pixels(tiny_dataset, INITIALISERS["real"](tiny_dataset, 5, generator(0)))
    for index in range(3):
        chosen = (images[index] * 255).round().to(torch.uint8).flatten(1)
        members = tiny_dataset.class_images(index).flatten(1)
        places = [(members == image).all(1).nonzero().item() for image in chosen]
        assert len(set(places)) == 5


def test_mean_of_one_image_a_class_is_the_class_mean(tiny_dataset: Dataset) -> None:
    images = pixels(tiny_dataset, INITIALISERS["mean"](tiny_dataset, 1, generator(0)))
    for index in range(3):
        expected = tiny_dataset.class_images(index).double().mean(0) / 255
        torch.testing.assert_close(images[index, 0].double(), expected, rtol=0, atol=1e-6)


def test_means_are_of_parts_that_make_up_the_class(tiny_dataset: Dataset) -> None:
    images = pixels(tiny_dataset, INITIALISERS["mean"](tiny_dataset, 2, generator(0)))
    sizes = torch.tensor([4.0, 3.0])  # class 1 has 7 images
    members = tiny_dataset.class_images(1).float() / 255
    total = (images[1] * sizes.view(2, 1, 1, 1)).sum(0)
    torch.testing.assert_close(total, members.sum(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in INITIALISERS if name != "noise"])
def test_more_images_than_the_class_has_is_an_error_that_names_it(
    name: str, tiny_dataset: Dataset
) -> None:
    with pytest.raises(ValueError, match="class 'zero': has 5 images, fewer than the 6 asked for"):
        INITIALISERS[name](tiny_dataset, 6, generator(0))
