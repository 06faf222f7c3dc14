"""Real images on the device or in the host's memory: the same batches, and none of them whole."""

import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from condensation.datasets import Dataset
from condensation.draws import Draws
from condensation.real_images import RealImages, fits

CPU = torch.device("cpu")


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


def draws_from(dataset: Dataset, on_device: bool, monkeypatch: pytest.MonkeyPatch) -> Draws:
    monkeypatch.setattr("condensation.real_images.fits", lambda num_bytes, device: on_device)
    return Draws(dataset, range(3, 5), None, CPU)


def batches(draws: Draws, *steps: int, ahead: Sequence[int] = ()) -> list[Tensor]:
    """Draw up to 6 images of each class in these steps; in some, those of the next one too."""
    found: list[Tensor] = []
    for step in steps:
        following = ("real", step + 1) if step in ahead else None
        for k in range(2):
            found += draws.real(k, range(3), 6, "real", step, following=following)
    return found


@pytest.mark.parametrize("ahead", [(), (0, 1, 2), (1,)])
def test_draws_are_the_same_from_the_host_and_ahead(
    ahead: Sequence[int], tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order they are asked for; a class of 5 images gives no more."""
    here, there = (draws_from(tiny_dataset, on, monkeypatch) for on in (True, False))
    expected = batches(here, 0, 1, 2, 7, 2)
    assert [len(batch) for batch in expected[:6]] == [5, 6, 6] * 2
    found = batches(there, 0, 1, 2, 7, 2, ahead=ahead)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    whole = tiny_dataset.normalise(tiny_dataset.class_images(1))
    assert all((whole == image).flatten(1).all(1).any() for image in expected[1])


def test_the_next_draw_is_made_while_this_one_is_used(
    tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = draws_from(tiny_dataset, False, monkeypatch)
    asked = threading.Semaphore(0)
    rows = RealImages.rows

    def noted(self: RealImages, index: Tensor) -> Tensor:
        asked.release()
        return rows(self, index)

    monkeypatch.setattr(RealImages, "rows", noted)
    draws.real(0, range(3), 2, "real", 0, following=("real", 1))
    for _ in range(6):
        assert asked.acquire(timeout=60), "each class of both draws, though the second is not used"
    draws.real(0, range(3), 2, "real", 1)
    assert not asked.acquire(blocking=False), "what was made ahead is taken"


def test_an_error_in_the_other_thread_is_raised_in_this_one(
    tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = draws_from(tiny_dataset, False, monkeypatch)
    monkeypatch.setattr(RealImages, "rows", lambda self, index: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        draws.real(0, range(3), 1, "real", 0)
