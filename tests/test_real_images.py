"""Real images on the device or in the host's memory: the same batches, and none of them whole."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from condensation.class_batches import ClassBatches
from condensation.datasets import Dataset
from condensation.real_images import RealImages, fits

CPU = torch.device("cpu")
SEEDS = (3, 4)


@pytest.mark.parametrize("on_device", [True, False])
def test_batches_are_those_of_the_normalised_whole(on_device: bool, tiny_dataset: Dataset) -> None:
    whole = tiny_dataset.normalise(tiny_dataset.images)
    images = RealImages(tiny_dataset, CPU, on_device)
    assert len(images) == 21 and images.shape == whole.shape and images.device == CPU
    for index in (torch.tensor([5, 0, 5]), slice(3, 9)):
        assert torch.equal(images[index], whole[index])
        assert images.rows(index).dtype == torch.uint8
    blocks = [*images.split(8)]
    assert [len(block) for block in blocks] == [8, 8, 5] and torch.equal(torch.cat(blocks), whole)


def test_what_is_larger_than_half_of_the_free_memory_stays_in_the_host_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1000, 4000))
    cuda = torch.device("cuda")
    assert fits(500, cuda) and not fits(501, cuda) and fits(10**15, CPU)


def drawn(batches: ClassBatches, *steps: int, ahead: Sequence[int] = ()) -> list[Tensor]:
    found = []
    for step in steps:
        following = ("real", step + 1) if step in ahead else None
        sets = batches.draw("real", step, following=following)
        found += [batch for of_set in sets for batch in of_set]
    return found


@pytest.mark.parametrize("ahead", [(), (0, 1, 2), (1,)])
def test_draws_are_the_same_from_the_host_and_ahead(
    ahead: Sequence[int], tiny_dataset: Dataset
) -> None:
    """In whatever order they are asked for; a class of 5 images gives no more."""
    members = tiny_dataset.members()
    here, there = (
        ClassBatches(RealImages(tiny_dataset, CPU, on_device), members, SEEDS, 6)
        for on_device in (True, False)
    )
    expected = drawn(here, 0, 1, 2, 7, 2)
    assert [len(batch) for batch in expected[:6]] == [5, 6, 6] * 2
    found = drawn(there, 0, 1, 2, 7, 2, ahead=ahead)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    whole = tiny_dataset.normalise(tiny_dataset.class_images(1))
    assert all((whole == image).flatten(1).all(1).any() for image in expected[1])


def test_the_next_draw_is_made_while_this_one_is_used(
    tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = RealImages(tiny_dataset, CPU, on_device=False)
    batches = ClassBatches(images, tiny_dataset.members(), [0], 2)
    asked: list[int] = []
    rows = RealImages.rows

    def noted(self: RealImages, index: Tensor) -> Tensor:
        asked.append(len(index))
        return rows(self, index)

    monkeypatch.setattr(RealImages, "rows", noted)
    batches.draw("real", 0, following=("real", 1))
    batches.draw("real", 1)
    assert asked == [2] * 6, "each class once in each of the two draws"


def test_an_error_in_the_other_thread_is_raised_in_this_one(tiny_dataset: Dataset) -> None:
    images = RealImages(tiny_dataset, CPU, on_device=False)
    batches = ClassBatches(images, [torch.tensor([10**6])], [0], 1)
    with pytest.raises(IndexError):
        batches.draw("real", 0)
