"""Raw files, prepared data, and batches by class."""

import dataclasses
import gzip
import shutil
from pathlib import Path

import pytest
import torch

from condensation.datasets import (
    Dataset,
    load_scoring,
    load_training,
    require_images,
    sample_class,
    shortages,
    write_prepared,
)
from condensation.idx_datasets import MNIST_FILES
from condensation.randomness import generator
from condensation.raw_data import DATASETS
from conftest import ROOT
from prepare import draw_validation, pixel_statistics

MNIST = ROOT / "data" / "mnist"


def test_mnist_is_the_published_one() -> None:
    raw = DATASETS["mnist"](MNIST)
    assert raw.train_images.shape == (60000, 1, 28, 28) and raw.train_images.dtype == torch.uint8
    assert raw.test_images.shape == (10000, 1, 28, 28) and raw.class_names == tuple("0123456789")
    assert raw.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert raw.test_labels.bincount().tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip
    mean, std = pixel_statistics(raw.train_images)
    assert mean.item() == pytest.approx(0.1307, abs=5e-5)
    assert std.item() == pytest.approx(0.3081, abs=5e-5)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other content", "not gzip"])
def test_a_damaged_raw_file_is_named(damage: str, tmp_path: Path) -> None:
    for name in MNIST_FILES:
        shutil.copy(MNIST / name, tmp_path / name)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"truncated": content[:-20], "other content": gzip.compress(b"no"), "not gzip": b"no"}[
                damage
            ]
        )
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz: (is|cannot)") as caught:
        DATASETS["mnist"](tmp_path)
    assert "\n" not in str(caught.value)


def test_prepared_data_comes_back(tmp_path: Path, tiny_dataset: Dataset) -> None:
    validation = draw_validation(tiny_dataset.labels, 1, 3, 0)
    test = dataclasses.replace(tiny_dataset, images=255 - tiny_dataset.images)
    write_prepared(tmp_path, tiny_dataset, test, validation)

    whole, tests = load_training(tmp_path, "test"), load_scoring(tmp_path, "test")
    assert torch.equal(whole.images, tiny_dataset.images) and whole.class_names[1] == "one"
    assert torch.equal(whole.mean, tiny_dataset.mean) and torch.equal(tests.images, test.images)
    part, held_out = load_training(tmp_path, "validation"), load_scoring(tmp_path, "validation")
    assert len(part.labels) == 18 and held_out.labels.bincount().tolist() == [1, 1, 1]
    together = torch.cat([part.images, held_out.images]).flatten(1)
    everything = tiny_dataset.images.flatten(1)
    assert sorted(together.tolist()) == sorted(everything.tolist())


def test_an_empty_validation_part_is_refused(tmp_path: Path, tiny_dataset: Dataset) -> None:
    write_prepared(tmp_path, tiny_dataset, tiny_dataset, torch.arange(0))
    assert len(load_training(tmp_path, "test").labels) == 21
    for load in (load_training, load_scoring):
        with pytest.raises(ValueError, match="^split: got validation, .*no class has two"):
            load(tmp_path, "validation")


def test_all_classes_that_are_too_small_are_named(tiny_dataset: Dataset) -> None:
    require_images(tiny_dataset, [5, 7, 9])
    with pytest.raises(ValueError) as caught:
        require_images(tiny_dataset, [6, 7, 10])
    assert str(caught.value) == (
        "class 'zero': has 5 images, fewer than the 6 asked for; "
        "class 'two': has 9 images, fewer than the 10 asked for"
    )
    many = dataclasses.replace(tiny_dataset, class_names=(*"abcdefghijklmnopqrstuvwxyz",))
    assert shortages(many, [100] * 26).endswith(
        "'t': has 0 images, fewer than the 100 asked for; and 6 more"
    )


def test_validation_part_keeps_most_of_a_small_class() -> None:
    sizes = [1, 2, 4, 10, 100]
    labels = torch.arange(5).repeat_interleave(torch.tensor(sizes))
    chosen = draw_validation(labels, 15, 5, 0)
    assert labels[chosen].bincount(minlength=5).tolist() == [0, 1, 1, 2, 15]
    assert torch.equal(chosen, draw_validation(labels, 15, 5, 0)) and len(chosen.unique()) == 19
    assert not torch.equal(chosen, draw_validation(labels, 15, 5, 1))


def test_normalised_images_have_mean_0_and_standard_deviation_1(tiny_dataset: Dataset) -> None:
    mean, std = pixel_statistics(tiny_dataset.images)
    exact = dataclasses.replace(tiny_dataset, mean=mean, std=std)
    images = exact.normalise(exact.images)
    assert images.dtype == torch.float32 and abs(images.mean().item()) < 1e-5
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_a_draw_is_without_repeats_and_follows_its_stream(tiny_dataset: Dataset) -> None:
    members = tiny_dataset.class_images(2)
    first, again, other = (sample_class(members, 9, "two", generator(0, s)) for s in "aab")
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert sorted(first.flatten(1).tolist()) == sorted(members.flatten(1).tolist())
    with pytest.raises(ValueError, match="class 'two': has 9 images, fewer than the 10 asked for"):
        sample_class(members, 10, "two", generator(0))
