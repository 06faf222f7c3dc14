"""What lies beside the synthetic set: pictures with true pixels, and a card one can follow."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from condensation.artefacts import SyntheticSet, write_synthetic_set
from condensation.product import dataset_card, write_pictures, write_product
from condensation.randomness import generator
from condensation.sources import SOURCES, source_of


def synthetic(
    num_classes: int = 3, channels: int = 1, counts: tuple[int, ...] | None = None
) -> SyntheticSet:
    counts = counts or (2,) * num_classes
    images = 3 * torch.randn(sum(counts), channels, 4, 5, generator=generator(0))
    names = ("zero", "a/b c", *map(str, range(2, num_classes)))
    mean, std = torch.full((channels,), 0.5), torch.full((channels,), 0.25)
    return SyntheticSet(images, counts, mean, std, names, {"seed": "0"})


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_hold_the_pixels(channels: int, tmp_path: Path) -> None:
    """True colours; what leaves 0 to 1 is limited, and values are rounded to 8 bits."""
    made = synthetic(channels=channels)
    write_pictures(tmp_path, made)
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["0_zero", "1_a_b_c", "2_2"]
    with Image.open(tmp_path / "1_a_b_c" / "0001.png") as image:
        found = np.asarray(image).astype(float) / 255
    expected = (made.images[3].numpy() * 0.25 + 0.5).clip(0, 1)
    expected = expected[0] if channels == 1 else expected.transpose(1, 2, 0)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=0.5 / 255 + 1e-6)


def test_numbers_of_images_that_differ_are_in_the_card_and_the_folders(tmp_path: Path) -> None:
    made = synthetic(counts=(1, 3, 2))
    card = dataset_card(made, SOURCES["mnist"], {})
    assert "6 images, 1 to 3 for each of 3 classes" in card
    assert "| label | class | images |\n|---|---|---|\n| 0 | zero | 1 |\n| 1 | a/b c | 3 |" in card
    write_pictures(tmp_path, made)
    assert ImageFolder(str(tmp_path)).targets == [0, 1, 1, 1, 2, 2]


def test_a_long_name_fits_into_a_path(tmp_path: Path) -> None:
    """Of the letter of three bytes a whole number is left."""
    names = ("\u732b" * 85, "x" * 255, "short")
    write_pictures(tmp_path, dataclasses.replace(synthetic(), class_names=names))
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["0_" + "\u732b" * 66, "1_" + "x" * 200, "2_short"]


def test_a_bar_in_a_name_does_not_end_its_cell() -> None:
    made = dataclasses.replace(synthetic(), class_names=("a|b", "c", "d"))
    assert "\n| 0 | a\\|b |\n| 1 | c |" in dataset_card(made, SOURCES["mnist"], {})


@pytest.mark.parametrize(
    "dataset, name",
    [("/pictures/flowers.v2", "flowers.v2"), ("./own.v2.npz", "own.v2"), ("./own/", "own")],
)
def test_a_dataset_is_called_by_all_of_its_name(dataset: str, name: str) -> None:
    assert source_of(dataset).title == f"'{name}'"


def test_the_folders_are_in_the_order_of_the_labels(tmp_path: Path) -> None:
    write_pictures(tmp_path, synthetic(num_classes=12))
    folder = ImageFolder(str(tmp_path))
    assert folder.targets == [index for index in range(12) for _ in range(2)]


def test_the_card_says_where_it_comes_from_and_its_code_runs(tmp_path: Path) -> None:
    made = synthetic()
    source = SOURCES["mnist"]
    write_synthetic_set(tmp_path / "synthetic.safetensors", made)
    write_product(tmp_path, made, source, {"order": 1, "curvature": {"form": "hvp"}})
    card = (tmp_path / "README.md").read_text()
    for text in (
        source.title,
        source.licence,
        source.authors,
        "- order: 1",
        "- curvature.form: hvp",
        "| 1 | a/b c |",
    ):
        assert text in card
    assert "(6, 1, 4, 5)" in card and "[0.25]" in card and "{" not in card
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.M | re.S)
    scope: dict[str, torch.Tensor] = {}
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        exec(code, scope)
    finally:
        os.chdir(before)
    assert scope["images"].shape == (6, 1, 4, 5) and scope["labels"].tolist() == [0, 0, 1, 1, 2, 2]


def test_the_same_set_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        write_product(tmp_path / name, synthetic(), SOURCES["mnist"], {"seed": 0})
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([path.read_bytes() for path in files])
    assert len(contents[0]) == 1 + 6 and contents[0] == contents[1]


def test_the_card_of_every_dataset_is_whole() -> None:
    for source in SOURCES.values():
        assert source.address in dataset_card(synthetic(), source, {})
