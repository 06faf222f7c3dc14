"""Sets from elsewhere: what is read, in which scale, and what is refused."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from condensation.artefacts import SyntheticSet, write_synthetic_set
from condensation.image_sets import ImageSet, load_image_set, load_image_sets
from condensation.randomness import generator
from condensation.raw_data import DATASETS
from condensation.sources import SOURCES

NAMES = ("a", "b", "c")
MEAN, STD = (0.1307,), (0.3081,)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
PIXELS = torch.rand(6, 1, 5, 4, generator=generator(0, "pixels"))
NORMALISED = (PIXELS - 0.1307) / 0.3081


def load(path: Path, content: Any, scale: str = "auto") -> list[ImageSet]:
    torch.save(content, path)
    return load_image_sets(path, scale, NAMES, MEAN, STD)


def test_the_first_layout_holds_normalised_sets(tmp_path: Path) -> None:
    """As the published code writes it: several sets, and accuracies as numbers of NumPy."""
    accuracies = {"ConvNet": [np.float64(0.9), np.float32(0.8)], "MLP": [0.7]}
    content = {
        "data": [[NORMALISED, LABELS], [NORMALISED + 1, LABELS]],
        "accs_all_exps": accuracies,
    }
    first, second = load(tmp_path / "res.pt", content)
    assert torch.equal(first.images, NORMALISED) and torch.equal(second.images, NORMALISED + 1)
    assert torch.equal(first.labels, LABELS) and first.class_names == NAMES
    torch.testing.assert_close(first.pixels, PIXELS)


def test_the_second_layout_holds_pixels(tmp_path: Path) -> None:
    (found,) = load(tmp_path / "data_best.pt", [PIXELS, LABELS.int()])
    assert found.mean.tolist() == [0] and found.std.tolist() == [1]
    assert found.labels.dtype == torch.int64
    normalised = found.normalised_with(torch.tensor(MEAN), torch.tensor(STD))
    torch.testing.assert_close(normalised.images, NORMALISED)
    torch.testing.assert_close(normalised.pixels, PIXELS)


def test_a_setting_says_what_the_layout_does_not(tmp_path: Path) -> None:
    (found,) = load(tmp_path / "list.pt", [NORMALISED, LABELS], "normalised")
    torch.testing.assert_close(found.pixels, PIXELS)
    (found,) = load(tmp_path / "dict.pt", {"data": [[PIXELS, LABELS]]}, "pixels")
    torch.testing.assert_close(found.pixels, PIXELS)


def test_classes_may_come_in_any_order_and_number(tmp_path: Path) -> None:
    order = torch.tensor([5, 0, 2, 1])
    (found,) = load(tmp_path / "set.pt", [PIXELS[order], LABELS[order]])
    assert found.labels.tolist() == [2, 0, 1, 0] and len(found) == 4
    for of_class, expected in zip(found.pixels_by_class, ([0, 1], [2], [5]), strict=True):
        torch.testing.assert_close(of_class, PIXELS[expected])


def test_a_set_of_this_pipeline(tmp_path: Path) -> None:
    """Through a loader for batches too."""
    synthetic = SyntheticSet(
        NORMALISED, (2, 2, 2), torch.tensor(MEAN), torch.tensor(STD), NAMES, {}
    )
    path = tmp_path / "set.safetensors"
    write_synthetic_set(path, synthetic)
    found = load_image_set(path)
    (again,) = load_image_sets(path, "auto", NAMES, MEAN, STD)
    assert torch.equal(found.images, again.images) and torch.equal(found.labels, LABELS)
    assert found.normalised_with(torch.tensor(MEAN), torch.tensor(STD)) is found
    image, label = found[3]
    assert torch.equal(image, NORMALISED[3]) and label == 1
    ((batch, labels),) = DataLoader(found, batch_size=6)
    assert torch.equal(batch, NORMALISED) and torch.equal(labels, LABELS)


class Malicious:
    """What would run a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        """Keep where the command would leave its trace."""
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        """Say what to call."""
        return (os.mkdir, (str(self.marker),))


def test_a_file_with_code_is_refused_and_its_code_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "code-was-run"
    content = {"data": [[NORMALISED, LABELS]], "more": Malicious(marker)}
    with pytest.raises(ValueError, match=r"set\.pt: .*code .*refused") as caught:
        load(tmp_path / "set.pt", content)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(marker)))
    with pytest.raises(ValueError, match=r"plain\.pt: cannot be loaded") as other:
        load_image_sets(tmp_path / "plain.pt", "auto", NAMES, MEAN, STD)
    assert not marker.exists()
    assert "\n" not in str(caught.value) + str(other.value)


BAD: dict[str, tuple[Any, str]] = {
    "another dict": ({"images": PIXELS}, "holds a dict with the keys 'images'; takes"),
    "a tensor": (PIXELS, r"holds a tensor \(6, 1, 5, 4\); takes"),
    "no set": ({"data": []}, "'data' is empty"),
    "no pair": ({"data": [[NORMALISED]]}, r"a set is a list, not \[images, labels\]"),
    "flat images": ([PIXELS.flatten(1), LABELS], r"images are a tensor \(6, 20\), not"),
    "labels of two axes": ([PIXELS, LABELS[:, None]], r"labels are a tensor \(6, 1\), not"),
    "fewer labels": ([PIXELS, LABELS[:4]], "6 images and 4 labels"),
    "no images": ([PIXELS[:0], LABELS[:0]], "0 images and 0 labels"),
    "whole-number images": ([PIXELS.mul(255).byte(), LABELS], "images are torch.uint8"),
    "soft labels": ([PIXELS, LABELS.float()], "labels are torch.float32, not whole"),
    "three channels": ([PIXELS.expand(6, 3, 5, 4), LABELS], "3 channels; the dataset has 1"),
    "a class too many": ([PIXELS, LABELS + 1], "classes 1, 2, 3; takes .* from 0 to 2"),
    "a class without images": ([PIXELS[:4], LABELS[:4]], "classes 0, 1; takes"),
    "not a number": ([PIXELS / 0 * 0, LABELS], "values that are no numbers"),
    "normalised after all": ([NORMALISED, LABELS], "evaluate.images_scale to normalised"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "set.pt", content)
    assert str(tmp_path / "set.pt") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no file of torch", b"PK\x03\x04" + bytes(50)])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "set.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.pt: cannot be loaded: it is "):
        load_image_sets(path, "auto", NAMES, MEAN, STD)


def test_a_missing_file_and_another_ending(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pt: cannot be read"):
        load_image_sets(tmp_path / "none.pt", "auto", NAMES, MEAN, STD)
    with pytest.raises(ValueError, match=r"evaluate\.images: got .*set\.npz, takes"):
        load_image_sets(tmp_path / "set.npz", "auto", NAMES, MEAN, STD)


def test_every_dataset_says_where_it_comes_from() -> None:
    assert SOURCES.keys() == DATASETS.keys()
    for source in SOURCES.values():
        assert len(source.published_mean) == len(source.published_std) > 0
