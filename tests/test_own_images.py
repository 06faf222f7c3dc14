"""One's own images: folders by class and `.npz` files, and what is said of broken ones."""

import errno
import io
import os
import re
import struct
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from condensation.artefacts import read_synthetic_set
from condensation.own_images import read_own_images
from condensation.randomness import generator
from condensation.raw_data import read_raw
from workspace import run_here, write_params

SIZES = {"ant": 12, "bee": 3, "cat": 5}


def picture(stream: str, *shape: int) -> np.ndarray:
    """Draw pixels (h, w) or (h, w, ch)."""
    drawn: np.ndarray = torch.randint(0, 256, shape, generator=generator(0, stream)).byte().numpy()
    return drawn


def make_folder(folder: Path, part: str = "train", shape: tuple[int, ...] = (8, 8, 3)) -> Path:
    """Write a folder of three unequal classes."""
    for name, count in SIZES.items():
        place = folder / part / name
        place.mkdir(parents=True)
        for number in range(count):
            pixels = picture(f"{part} {name} {number}", *shape)
            Image.fromarray(pixels).save(place / f"{number:02d}.png")
    return folder


def make_arrays(path: Path, **changes: Any) -> Path:
    """Write an `.npz` file of two classes; an array that is changed to None is left out."""
    arrays: dict[str, Any] = {
        "images": picture("images", 10, 8, 8, 3),
        "labels": np.arange(10) % 2,
        **changes,
    }
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_a_folder_of_colour_images(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "train/ant/.hidden").write_text("left out")
    raw = read_own_images(tmp_path, None, 0)
    assert raw.class_names == ("ant", "bee", "cat") and raw.train_images.dtype == torch.uint8
    assert raw.train_images.shape[1:] == raw.test_images.shape[1:] == (3, 8, 8)
    assert raw.train_labels.bincount().tolist() == [10, 2, 4]
    assert raw.test_labels.bincount().tolist() == [2, 1, 1]
    everything = torch.cat([raw.train_images, raw.test_images]).flatten(1).tolist()
    files = sorted((tmp_path / "train").glob("*/*.png"))
    expected = [np.array(Image.open(file)).transpose(2, 0, 1).flatten().tolist() for file in files]
    assert sorted(everything) == sorted(expected)


@pytest.mark.parametrize("parts", [("train",), ("train", "test")], ids=len)
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_each_image_keeps_its_label(kind: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    """All pixels of an image are 20 times its class and its number, 100 more in the test part."""
    wanted = [
        (part, name, 100 * parts.index(part) + 20 * label + number)
        for part in parts
        for label, (name, count) in enumerate(SIZES.items())
        for number in range(count)
    ]
    path = tmp_path / "own.npz"
    if kind == "folder":
        path = tmp_path
        for part, name, value in wanted:
            (path / part / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), value).save(path / part / name / f"{value % 7} {value}.png")
    else:
        arrays = {"class_names": np.array([*SIZES])}
        for part, prefix in zip(parts, ("", "test_"), strict=False):
            values = np.array([value for each, _, value in wanted if each == part], np.uint8)
            values = np.random.default_rng(0).permutation(values)
            arrays[f"{prefix}images"] = np.tile(values[:, None, None], (1, 8, 8))
            arrays[f"{prefix}labels"] = values % 100 // 20
        make_arrays(path, **arrays)
    raw = read_own_images(path, None, 0)
    found = []
    for part, images, labels in (
        (parts[0], raw.train_images, raw.train_labels),
        (parts[-1], raw.test_images, raw.test_labels),
    ):
        assert len(images) == len(labels) > 0 and (images == images[:, :, :1, :1]).all()
        values_of_part = images[:, 0, 0, 0].tolist()
        names = [raw.class_names[label] for label in labels.tolist()]
        found += [(part, *each) for each in zip(names, values_of_part, strict=True)]
    assert sorted(found) == sorted(wanted)


def test_the_test_part_follows_the_seed(tmp_path: Path) -> None:
    make_folder(tmp_path)
    first, again, other = (read_own_images(tmp_path, None, seed) for seed in (0, 0, 1))
    assert torch.equal(first.test_images, again.test_images)
    assert not torch.equal(first.test_images, other.test_images)


def test_hidden_files_linked_classes_and_large_endings(tmp_path: Path) -> None:
    """As a Mac, a full disk and a camera leave them."""
    make_folder(tmp_path / "own")
    for place in ("own", "own/train", "own/train/ant"):
        (tmp_path / place / ".DS_Store").write_text("no image")
    (tmp_path / "disk").mkdir()
    for number in range(2):
        Image.fromarray(picture(f"dog {number}", 8, 8, 3)).save(tmp_path / f"disk/{number}.PNG")
    (tmp_path / "own/train/dog").symlink_to("../../disk")
    raw = read_own_images(tmp_path / "own", None, 0)
    assert raw.class_names == ("ant", "bee", "cat", "dog")
    assert raw.train_labels.bincount().tolist() == [10, 2, 4, 1]
    assert raw.test_labels.bincount().tolist() == [2, 1, 1, 1]


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "blüte") for form in ("NFC", "NFD"))
"""One name, as a keyboard gives it and as an archive of a Mac has it."""


def test_a_name_may_be_written_in_two_ways(tmp_path: Path) -> None:
    make_folder(tmp_path)
    make_folder(tmp_path, "test")
    for part, name in (("train", COMPOSED), ("test", DECOMPOSED)):
        (tmp_path / part / "bee").rename(tmp_path / part / name)
    raw = read_own_images(tmp_path, None, 0)
    assert raw.class_names == ("ant", COMPOSED, "cat") and COMPOSED != DECOMPOSED
    assert raw.train_labels.bincount().tolist() == raw.test_labels.bincount().tolist() == [12, 3, 5]
    path = make_arrays(tmp_path / "own.npz", class_names=np.array(["ant", DECOMPOSED]))
    assert read_own_images(path, None, 0).class_names == ("ant", COMPOSED)


def test_a_folder_with_a_test_part_of_grey_images(tmp_path: Path) -> None:
    make_folder(tmp_path, "test", (8, 8))
    make_folder(tmp_path, shape=(8, 8))
    raw = read_own_images(tmp_path, None, 0)
    assert raw.train_images.shape == raw.test_images.shape == (20, 1, 8, 8)
    assert not torch.equal(raw.train_images, raw.test_images)


def test_images_of_all_sizes_and_kinds_become_one(tmp_path: Path) -> None:
    make_folder(tmp_path)
    Image.fromarray(picture("a", 20, 31)).save(tmp_path / "train/bee/a.gif")
    Image.fromarray(picture("b", 40, 16, 4)).save(tmp_path / "train/bee/b.webp")
    raw = read_own_images(tmp_path, 16, 0)
    assert raw.train_images.shape == (18, 3, 16, 16) and len(raw.test_labels) == 4


@pytest.mark.parametrize("size", [28, 32, 64])
def test_images_are_brought_to_the_sizes_of_the_literature(size: int, tmp_path: Path) -> None:
    images, labels = picture("images", 6, 20, 24, 3), np.arange(6) % 2
    path = make_arrays(tmp_path / "own.npz", images=images, labels=labels)
    raw = read_own_images(path, size, 0)
    assert raw.train_images.shape == (4, 3, size, size) and raw.test_images.shape == (
        2,
        3,
        size,
        size,
    )


@pytest.mark.parametrize("shape", [(9, 12, 3), (8, 8, 3), (20, 20, 3)])
def test_the_test_part_of_an_npz_file_may_be_of_another_size(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    changes = {"test_images": picture("t", 2, *shape), "test_labels": np.arange(2)}
    raw = read_own_images(make_arrays(tmp_path / "own.npz", **changes), 16, 0)
    assert raw.train_images.shape == (10, 3, 16, 16) and raw.test_images.shape == (2, 3, 16, 16)


def test_grey_images_of_an_npz_file_may_have_a_channel_or_none(tmp_path: Path) -> None:
    changes = {"images": picture("i", 10, 8, 8), "test_images": picture("t", 2, 8, 8, 1)}
    path = make_arrays(tmp_path / "own.npz", test_labels=np.arange(2), **changes)
    raw = read_own_images(path, None, 0)
    assert raw.train_images.shape == (10, 1, 8, 8) and raw.test_images.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3)])
def test_an_npz_file(shape: tuple[int, ...], tmp_path: Path) -> None:
    images, tests = picture("images", 10, *shape), picture("tests", 4, *shape)
    path = make_arrays(
        tmp_path / "own.npz",
        images=images,
        labels=np.arange(10, dtype=np.uint8) % 2,
        test_images=tests,
        test_labels=np.arange(4) % 2,
        class_names=np.array(["no", "yes"]),
    )
    raw = read_own_images(path, None, 0)
    assert raw.class_names == ("no", "yes") and raw.test_labels.tolist() == [0, 1, 0, 1]
    assert raw.train_images.shape[1:] == (shape[2] if len(shape) == 3 else 1, 8, 8)
    pixels = raw.train_images.permute(0, 2, 3, 1).reshape(images.shape).numpy()
    assert np.array_equal(pixels, images) and raw.train_labels.dtype == torch.int64


def test_the_ending_of_an_npz_file_may_be_in_capitals(tmp_path: Path) -> None:
    path = make_arrays(tmp_path / "own.npz").rename(tmp_path / "own.NPZ")
    assert read_own_images(path, None, 0).class_names == ("0", "1")


def test_names_of_an_npz_file_may_be_bytes(tmp_path: Path) -> None:
    names = np.array(["blüte", "cat"])
    path = make_arrays(tmp_path / "own.npz", class_names=np.char.encode(names, "utf-8"))
    assert read_own_images(path, None, 0).class_names == ("blüte", "cat")


def test_an_npz_file_without_names_and_test_part(tmp_path: Path) -> None:
    raw = read_own_images(make_arrays(tmp_path / "own.npz"), None, 0)
    assert raw.class_names == ("0", "1") and raw.test_labels.bincount().tolist() == [1, 1]


def truncate(path: Path) -> None:
    """Keep the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def single_array() -> bytes:
    """Return a file of one array, as `.npy`."""
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    return content.getvalue()


BROKEN_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no image": (
        lambda folder: (folder / "train/ant/note.txt").write_text("no image"),
        r"train/ant/note\.txt: cannot be read \(it is no picture that Pillow can read\)",
    ),
    "no image either": (
        lambda folder: (folder / "train/bee/Thumbs.db").write_text("no image"),
        r"train/bee/Thumbs\.db: cannot be read \(it is no picture that Pillow can read\)",
    ),
    "truncated": (
        lambda folder: truncate(folder / "train/bee/01.png"),
        r"train/bee/01\.png: cannot be read \(",
    ),
    "wrong size": (
        lambda folder: Image.fromarray(picture("x", 9, 8, 3)).save(folder / "train/cat/x.png"),
        r"train/cat/x\.png: is 9 x 8, most images are 8 x 8 .*prepare\.image_size",
    ),
    "16 bits": (
        lambda folder: Image.new("I;16", (8, 8)).save(folder / "train/cat/y.png"),
        r"train/cat/y\.png: has pixels of the kind I;16, takes 8 bits",
    ),
    "beside the classes": (
        lambda folder: (folder / "train/stray.png").write_text(""),
        r"train/stray\.png: lies beside the folders",
    ),
    "folder in a class": (
        lambda folder: (folder / "train/ant/more").mkdir(),
        r"train/ant/more: is a folder in a class",
    ),
    "link to nowhere": (
        lambda folder: (folder / "train/ant/gone.png").symlink_to("nowhere"),
        r"train/ant/gone\.png: cannot be read \(No such file or directory\)",
    ),
    "unknown class": (
        lambda folder: (make_folder(folder, "test") / "test/dog").mkdir(),
        r"test/dog: is no class; train has ant, bee, cat",
    ),
    "part in capitals": (
        lambda folder: (folder / "Test").mkdir(),
        r"Test: is not read; takes the name 'test'",
    ),
}
"""What is done to a folder, and what is said of it."""


@pytest.mark.parametrize("damage", BROKEN_FOLDERS)
def test_what_is_wrong_in_a_folder_is_named(damage: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    spoil, message = BROKEN_FOLDERS[damage]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=f"^dataset: .* cannot be used:\n  {message}") as caught:
        read_own_images(tmp_path, None, 0)
    assert len(str(caught.value).splitlines()) == 2


def test_all_that_is_wrong_in_a_folder_is_named_at_once(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for spoil, _ in BROKEN_FOLDERS.values():
        spoil(tmp_path)
    with pytest.raises(ValueError) as caught:
        read_own_images(tmp_path, None, 0)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == len(BROKEN_FOLDERS)
    for _, message in BROKEN_FOLDERS.values():
        assert sum(re.match(f"  {message}", line) is not None for line in lines) == 1


def close(folder: Path, may: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a folder be listed or entered and not the other.

    As a system does for others than its administrator, who may do both.
    """
    list_folder, is_folder = Path.iterdir, Path.is_dir

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def listed(path: Path) -> Iterator[Path]:
        if path == folder and may != "list":
            refuse(path)
        return list_folder(path)

    def asked(path: Path) -> bool:
        if path.parent == folder and may != "enter":
            refuse(path)
        return is_folder(path)

    monkeypatch.setattr(Path, "iterdir", listed)
    monkeypatch.setattr(Path, "is_dir", asked)


@pytest.mark.parametrize("may", ["enter", "list"])
def test_a_class_that_must_not_be_read_is_named_with_all_that_is_wrong(
    may: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path)
    truncate(tmp_path / "train/bee/01.png")
    close(tmp_path / "train/cat", may, monkeypatch)
    with pytest.raises(ValueError) as caught:
        read_own_images(tmp_path, None, 0)
    _, closed, broken = str(caught.value).splitlines()  # and no word of the class's images
    assert closed == "  train/cat: cannot be read (Permission denied)"
    assert broken.startswith("  train/bee/01.png: cannot be read (")


@pytest.mark.parametrize("may", ["enter", "list"])
@pytest.mark.parametrize(
    "place, said",
    [
        ("", "it cannot"),
        ("train", "Test: .*\n  train: cannot"),
        ("test", "Test: .*\n  test: cannot"),
    ],
)
def test_a_part_that_must_not_be_read_is_named(
    place: str, said: str, may: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(make_folder(tmp_path), "test")
    (tmp_path / "Test").mkdir()
    close(tmp_path / place, may, monkeypatch)
    message = rf"cannot be used:\n  {said} be read \(Permission denied\)$"
    with pytest.raises(ValueError, match=message):
        read_own_images(tmp_path, None, 0)


@pytest.mark.parametrize("part", ["train", "test"])
def test_folders_of_one_name_are_named(part: str, tmp_path: Path) -> None:
    make_folder(make_folder(tmp_path), "test")
    for each in ("train", "test"):
        (tmp_path / each / "bee").rename(tmp_path / each / COMPOSED)
    (tmp_path / part / DECOMPOSED).mkdir()
    with pytest.raises(
        ValueError,
        match=rf"cannot be used:\n  {part}/{COMPOSED}: are 2 folders, whose names differ",
    ) as caught:
        read_own_images(tmp_path, None, 0)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("is_link", [False, True])
def test_a_test_part_that_is_no_folder_is_named(is_link: bool, tmp_path: Path) -> None:
    make_folder(tmp_path)
    if is_link:
        (tmp_path / "test").symlink_to("nowhere")
    else:
        (tmp_path / "test").write_text("")
    with pytest.raises(ValueError, match=r"cannot be used:\n  test: is no folder$"):
        read_own_images(tmp_path, None, 0)


def test_a_training_part_in_capitals_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path, "TRAIN")
    with pytest.raises(
        ValueError,
        match=r"has no folder 'train' of .*\n  TRAIN: is not read; takes the name 'train'$",
    ):
        read_own_images(tmp_path, None, 0)


def test_other_folders_beside_the_parts_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(tmp_path, {"dataset": "./own"})
    make_folder(tmp_path / "data/own")
    (tmp_path / "data/own/README.txt").write_text("no folder")
    run_here(tmp_path, "prepare", monkeypatch)
    assert len(capsys.readouterr().out.splitlines()) == 2
    for name in ("val", "more\nimages", ".cache"):
        (tmp_path / "data/own" / name).mkdir()
    run_here(tmp_path, "prepare", monkeypatch)
    _, said, _ = capsys.readouterr().out.splitlines()
    assert said == (
        r"prepare: nothing is read of more\nimages, val; takes the folders train and test"
    )


def test_a_class_that_is_too_small_is_named_with_all_that_is_wrong(tmp_path: Path) -> None:
    make_folder(tmp_path)
    truncate(tmp_path / "train/bee/01.png")
    (tmp_path / "train/dog").mkdir()
    with pytest.raises(ValueError) as caught:
        read_own_images(tmp_path, None, 0)
    _, broken, small = str(caught.value).splitlines()
    assert broken.startswith("  train/bee/01.png: cannot be read (")
    assert small.startswith("  class 'dog' has 0 training images, takes at least 2")


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb", b" "])
def test_a_name_that_cannot_be_written_is_refused(name: bytes, tmp_path: Path) -> None:
    make_folder(tmp_path)
    os.rename(tmp_path / "train/cat", os.fsencode(tmp_path / "train") + b"/" + name)
    with pytest.raises(ValueError, match=r"its name has to be text \(UTF-8\)") as caught:
        read_own_images(tmp_path, None, 0)
    assert len(str(caught.value).encode().splitlines()) == 2


@pytest.mark.parametrize(
    "names, part, message",
    [
        ([], None, r"it has 0 class, takes at least 2"),
        (["ant"], None, r"it has 1 class, takes at least 2"),
        (["ant", "bee"], None, r"class 'bee' has 1 training images, takes at least 2 \(one"),
        (["ant", "bee"], "test", r"class 'ant' has no test image\n  class 'bee' has no test image"),
    ],
)
def test_classes_with_too_few_images(
    names: list[str], part: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    for count, name in zip([2, 1], names, strict=False):
        (tmp_path / "train" / name).mkdir()
        for number in range(count):
            Image.fromarray(picture(name, 8, 8)).save(tmp_path / f"train/{name}/{number}.png")
    if part is not None:
        (tmp_path / part).mkdir()
    with pytest.raises(ValueError, match=message):
        read_own_images(tmp_path, None, 0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": None}, r"images: is missing"),
        ({"labels": None}, r"labels: is missing"),
        (
            {"x_test": picture("t", 2, 8, 8, 3), "labels": np.zeros(3)},
            r"x_test: is not known; takes images, labels, test_images, test_labels, class_names\n"
            r"  labels: are float64 3, take one whole",
        ),
        (
            {"labels": None, "label": np.zeros(10), "images": np.zeros((10, 8, 8))},
            r"label: is not known; takes .*\n  labels: is missing\n  images: are float64 10 x 8",
        ),
        (
            {"labels": np.zeros(10), "images": np.zeros((10, 8, 8)), "test_labels": np.ones(2)},
            r"test_images: is missing\n  images: are float64 .*\n  labels: are float64 10",
        ),
        (
            {"labels": np.arange(10) % 2 + 1},
            r"labels: are from 1 to 2, take whole numbers from 0: subtract 1$",
        ),
        (
            {"labels": np.arange(1, 11)},
            r"labels: are from 1 to 10, take whole numbers from 0: subtract 1$",
        ),
        (
            {"labels": np.arange(10) % 2 + 1, "class_names": np.array(["a", "b"])},
            r"labels: are from 1 to 2, take whole numbers from 0: subtract 1$",
        ),
        (
            {
                "labels": np.arange(10) % 2 + 1,
                "test_images": picture("t", 2, 8, 8, 3),
                "test_labels": np.array([1, 2]),
            },
            r"labels: are from 1 to 2, take whole .*: subtract 1, from test_labels too$",
        ),
        (
            {"labels": np.array([0, 1, -1, 500, *range(6)])},
            r"labels: that of image 2 is -1, takes .*\n"
            r"  labels: that of image 3 is 500, takes whole numbers from 0 to 9: no more classes "
            r"than there are images$",
        ),
        (
            {"test_images": picture("t", 2, 8, 8), "test_labels": np.arange(2)},
            r"test_images: have channels: 1, images: 3$",
        ),
        (
            {"test_images": picture("t", 2, 9, 8), "test_labels": np.array([0, 2])},
            r"test_images: have channels: 1, images: 3\n"
            r"  test_images: are 9 x 8, images 8 x 8 \(height x width\); .*\n"
            r"  test_labels: that of image 1 is 2, no class from 0 to 1$",
        ),
        (
            {"labels": 2 * (np.arange(10) % 2)},
            r"class '1' has 0 training images, takes at least 2 \(one of them becomes the test",
        ),
        (
            {"labels": np.array([10, *range(9)])},
            r"labels: that of image 0 is 10, takes whole numbers from 0 to 9: no more classes",
        ),
        (
            {
                "labels": np.arange(10) % 2 + 1,
                "test_images": picture("t", 3, 8, 8, 3),
                "test_labels": np.arange(3),
            },
            r"class '0' has 0 training images, takes at least 1$",
        ),
        (
            {"labels": np.full(10, 1), "class_names": np.array(["a", "b", "c"])},
            r"class 'a' has 0 training images, .*\n  class 'c' has 0 training images, ",
        ),
        ({"images": np.zeros((10, 8, 8))}, r"images: are float64 10 x 8 x 8, take uint8"),
        ({"images": np.zeros((10, 3, 8, 8), np.uint8)}, r"images: are uint8 10 x 3 x 8 x 8, take"),
        (
            {"labels": np.arange(9)},
            r"labels: are int64 9, take one whole number for each of",
        ),
        ({"labels": np.zeros(10)}, r"labels: are float64 10, take one whole"),
        (
            {"labels": np.arange(10) % 2 - 1},
            r"labels: that of image 0 is -1, no class from 0 to 0\n",
        ),
        (
            {"class_names": np.array(["a"])},
            r"labels: that of image 1 is 1, no class from 0 to 0\n(.*\n)+.* that of image 9 is 1",
        ),
        ({"class_names": np.array(["a", "a"])}, r"class_names: a name is given twice"),
        (
            {"class_names": np.array([COMPOSED, DECOMPOSED])},
            r"class_names: a name is given twice$",
        ),
        ({"class_names": np.array(["a", "b", "c"])}, r"class 'c' has 0 training images"),
        ({"test_images": picture("t", 2, 8, 8, 3)}, r"test_labels: is missing"),
        (
            {"test_images": picture("t", 2, 9, 8, 3), "test_labels": np.arange(2)},
            r"test_images: are 9 x 8, images 8 x 8 \(height x width\); prepare.image_size brings",
        ),
        (
            {"test_images": picture("t", 2, 8, 8, 3), "test_labels": np.array([0, 2])},
            r"test_labels: that of image 1 is 2, no class from 0 to 1",
        ),
        ({"labels": np.array([None] * 10)}, r"labels: cannot be read \(.*pickle"),
        (
            {"class_names": np.array(["a", "b"], object), "labels": np.array([None] * 10)},
            r"labels: cannot be read \(.*pickle.*\n  class_names: cannot be read \(.*pickle",
        ),
        (
            {"images": np.zeros((0, 8, 8), np.uint8), "labels": np.zeros(0, np.int64)},
            r"images: there are none$",
        ),
        (
            {"test_images": np.zeros((0, 8, 8, 3), np.uint8), "test_labels": np.zeros(0)},
            r"test_images: there are none$",
        ),
        ({"labels": np.array(1)}, r"labels: are int64 one number, take one whole number"),
        (
            {"class_names": np.array("ab")},
            r"class_names: are <U2 one number, take one text for each class$",
        ),
        ({"class_names": np.array([["a", "b"]])}, r"class_names: are <U1 1 x 2, take one text"),
        ({"class_names": np.array([0.5, 1.5])}, r"class_names: are float64 2, take one text for"),
        ({"class_names": np.array([], "U1")}, r"class_names: are <U1 0, take one text for each"),
        ({"class_names": np.array(["a", ""])}, r"class_names: class '': its name has to be text"),
        (
            {"class_names": np.array(["a\nb", "c"])},
            r"class_names: class 'a\\nb': its name has to be text \(UTF-8\), neither empty",
        ),
        (
            {"class_names": np.array([b"caf\xe9", b"b"])},
            r"class_names: are bytes that are not UTF-8 \(",
        ),
        (
            {"images": np.zeros((10, 8, 8)), "class_names": np.array(["a", "b", "c"])},
            r"images: are float64 .*\n  class 'c' has 0 training images",
        ),
    ],
)
def test_what_is_wrong_in_an_npz_file_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = make_arrays(tmp_path / "own.npz", **changes)
    with pytest.raises(ValueError, match=f"^dataset: .*own.npz cannot be used:\n  {message}"):
        read_own_images(path, None, 0)


def test_sizes_that_are_brought_to_one_are_no_problem_among_others(tmp_path: Path) -> None:
    changes = {"test_images": picture("t", 2, 9, 8), "test_labels": np.array([0, 2])}
    with pytest.raises(ValueError) as caught:
        read_own_images(make_arrays(tmp_path / "own.npz", **changes), 16, 0)
    _, channels, label = str(caught.value).splitlines()
    assert channels == "  test_images: have channels: 1, images: 3"
    assert label.startswith("  test_labels: that of image 1 is 2")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(50), b"no array", single_array()])
def test_a_damaged_npz_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"own\.npz cannot be used:\n  it cannot be read \("):
        read_own_images(path, None, 0)


def test_a_photograph_with_a_damaged_tag_is_taken(tmp_path: Path) -> None:
    """Its pixels are sound; Pillow warns that one of Exif's texts lies outside of the file."""
    make_folder(tmp_path, shape=(16, 16, 3))
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = "a maker with a long name"
    content = tags.tobytes()
    entry = content.index(struct.pack(">HH", ExifTags.Base.Make, 2))  # count and offset follow
    damaged = content[: entry + 8] + struct.pack(">I", 1 << 20) + content[entry + 12 :]
    pixels = picture("jpeg", 16, 16, 3)
    Image.fromarray(pixels).save(tmp_path / "train/bee/photograph.jpg", exif=damaged)
    path = tmp_path / "train/bee/photograph.jpg"
    with (
        pytest.warns(UserWarning, match="Truncated|Corrupt|larger than"),
        Image.open(path) as image,
    ):
        image.getexif()
    assert len(read_own_images(tmp_path, None, 0).train_labels) == 17


def test_photographs_lie_as_they_are_looked_at(tmp_path: Path) -> None:
    """Half of them were taken with the camera on its side."""
    make_folder(tmp_path, shape=(6, 8, 3))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for file in (tmp_path / "train").glob("*/*[02468].png"):
        Image.fromarray(picture(file.name, 8, 6, 3)).save(file, exif=turned)
    assert read_own_images(tmp_path, None, 0).train_images.shape[1:] == (3, 6, 8)


def test_grey_images_with_transparency_stay_grey(tmp_path: Path) -> None:
    make_folder(tmp_path, shape=(8, 8, 2))
    assert read_own_images(tmp_path, None, 0).train_images.shape[1:] == (1, 8, 8)


def test_a_grey_image_with_a_palette_leaves_the_others_grey(tmp_path: Path) -> None:
    make_folder(tmp_path, shape=(8, 8))
    pixels = picture("palette", 8, 8)
    Image.fromarray(pixels).convert("RGB").quantize(256).save(tmp_path / "train/ant/00.png")
    with Image.open(tmp_path / "train/ant/00.png") as image:
        assert image.mode == "P"
    raw = read_own_images(tmp_path, None, 0)
    assert raw.train_images.shape[1:] == (1, 8, 8)
    everything = torch.cat([raw.train_images, raw.test_images])
    assert (everything == torch.from_numpy(pixels)).all((1, 2, 3)).any()


def test_a_channel_of_one_value_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no standard deviation to be normalised by."""
    write_params(tmp_path, {"dataset": "./own.npz"})
    (tmp_path / "data").mkdir()
    images = picture("images", 10, 8, 8, 3)
    images[..., 1] = 7
    make_arrays(tmp_path / "data/own.npz", images=images)
    message = r"^dataset: got \./own\.npz, all pixels .* one value, .* in channel 1: 0\.0275; takes"
    with pytest.raises(ValueError, match=message):
        run_here(tmp_path, "prepare", monkeypatch)
    assert not (tmp_path / "data/prepared").exists()


def test_a_folder_of_raw_files_is_refused_beside_one_s_own_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^prepare\.raw: got raw, takes auto .* \(\./own\)$"):
        read_raw("./own", Path("raw"), None, 0)


def test_what_is_neither_folder_nor_npz(tmp_path: Path) -> None:
    (tmp_path / "file.zip").write_text("")
    for name in ("none", "none.npz", "file.zip"):
        with pytest.raises(
            ValueError, match=rf"dataset: got .*{name}, takes a folder .* or an .npz"
        ):
            read_own_images(tmp_path / name, None, 0)
    with pytest.raises(ValueError, match="has no folder 'train'"):
        read_own_images(tmp_path, None, 0)


def test_a_folder_is_prepared_and_condensed_in_proportion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10, 2 and 4 training images: bee has less than one of six; the others share five."""
    changes = {"dataset": "./own", "ipc_shares": "proportional", "ipc": 2, "init": "real"}
    write_params(tmp_path, {**changes, "order": 1, "condense.iterations": 2})
    make_folder(tmp_path / "data/own")
    for stage in ("prepare", "initialize", "condense"):
        run_here(tmp_path, stage, monkeypatch)
    condensed = read_synthetic_set(tmp_path / "data/condensed/synthetic.safetensors")
    assert condensed.class_names == ("ant", "bee", "cat") and condensed.counts == (4, 1, 1)
    assert (
        "6 images, 1 to 4 for each of 3 classes"
        in (tmp_path / "data/condensed/README.md").read_text()
    )
