"""A synthetic set comes back as it was written, byte for byte; a damaged one is refused."""

import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from condensation.artefacts import SyntheticSet, read_synthetic_set, write_synthetic_set
from condensation.randomness import generator


@pytest.fixture
def synthetic() -> SyntheticSet:
    images = torch.randn(6, 1, 4, 5, generator=generator(0))
    names, metadata = ("a", "b", "c"), {"seed": "0", "order": "1"}
    mean, std = torch.tensor([0.1]), torch.tensor([0.3])
    return SyntheticSet(images, (2, 1, 3), mean, std, names, metadata)


def test_round_trip(tmp_path: Path, synthetic: SyntheticSet) -> None:
    path = tmp_path / "folder" / "set.safetensors"
    write_synthetic_set(path, synthetic)
    read = read_synthetic_set(path)
    assert torch.equal(read.images, synthetic.images)
    assert torch.equal(read.mean, synthetic.mean) and torch.equal(read.std, synthetic.std)
    assert read.class_names == ("a", "b", "c") and read.metadata == synthetic.metadata
    assert read.counts == (2, 1, 3) and read.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert [p.name for p in path.parent.iterdir()] == ["set.safetensors"]


def test_same_set_same_bytes(tmp_path: Path, synthetic: SyntheticSet) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        write_synthetic_set(path, synthetic)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_stranger_can_use_it_with_safetensors_alone(
    tmp_path: Path, synthetic: SyntheticSet
) -> None:
    write_synthetic_set(tmp_path / "set.safetensors", synthetic)
    tensors = safetensors.torch.load_file(tmp_path / "set.safetensors")
    assert tensors["images"].shape == (6, 1, 4, 5) and tensors["labels"].tolist() == [
        0, 0, 1, 2, 2, 2
    ]  # fmt: skip


def test_pixels_are_limited_to_what_can_be_shown(synthetic: SyntheticSet) -> None:
    pixels = synthetic.pixels
    assert pixels.min() >= 0 and pixels.max() <= 1
    inside = (pixels > 0) & (pixels < 1)
    expected = synthetic.images * 0.3 + 0.1
    torch.testing.assert_close(pixels[inside], expected[inside], rtol=0, atol=1e-6)


def damaged(content: bytes) -> dict[str, tuple[bytes, str]]:
    """Return files that are wrong by one thing each, and the words that say so."""
    tensors = safetensors.torch.load(content)
    size = struct.unpack("<Q", content[:8])[0]
    description = json.loads(content[8 : 8 + size])["__metadata__"]["description"]

    def saved(**changes: torch.Tensor) -> bytes:
        return safetensors.torch.save({**tensors, **changes}, {"description": description})

    def described(text: str) -> bytes:
        return safetensors.torch.save(tensors, {"description": text})

    def told(**changes: object) -> bytes:
        return described(json.dumps({**json.loads(description), **changes}))

    infinite = tensors["images"].clone()
    infinite[-1, -1, -1, -1] = float("inf")
    unread, other = "cannot be read as a synthetic set (", "is not a synthetic set of the format '"
    names, values = "its class_names are not a list of texts", "its metadata are not texts"
    classes = "labels are not those of 3 classes in order, at least one of each"
    finite, above = "holds numbers that are not finite", "std is not above 0"
    no_labels = {k: v for k, v in tensors.items() if k != "labels"}
    return {
        "empty": (b"", unread),
        "truncated": (content[:-7], unread),
        "huge header": (struct.pack("<Q", 2**60) + content[8:], unread),
        "pickle": (b"\x80\x04\x95" + bytes(40), unread),
        "other metadata": (described("{}"), other),
        "metadata is no object": (described("[1]"), other),
        "metadata is no JSON": (described("{"), unread),
        "class names are numbers": (told(class_names=[1, 2, 3]), names),
        "class names are one text": (told(class_names="abc"), names),
        "no class names": (told(class_names=[]), names),
        "a value is no text": (told(seed=0), values),
        "no tensor": (
            safetensors.torch.save(no_labels, {"description": description}),
            "has no tensor named labels",
        ),
        "float64": (
            saved(images=tensors["images"].double()),
            "images are torch.float64 (6, 1, 4, 5), not float32",
        ),
        "no images": (
            saved(images=torch.zeros(0, 1, 4, 5), labels=torch.zeros(0, dtype=torch.int64)),
            "images (0, 1, 4, 5) are none",
        ),
        "too few": (
            saved(images=tensors["images"][:4].contiguous()),
            "labels are torch.int64 (6,), not int64, one for each image",
        ),
        "labels": (saved(labels=tensors["labels"].flip(0).contiguous()), classes),
        "an empty class": (saved(labels=tensors["labels"] // 2 * 2), classes),
        "a further class": (saved(labels=tensors["labels"] + 1), classes),
        "too many labels": (
            saved(labels=torch.zeros(7, dtype=torch.int64)),
            "labels are torch.int64 (7,), not int64, one for each image",
        ),
        "two means": (
            saved(mean=torch.zeros(2)),
            "mean is torch.float32 (2,), not float32, one for each channel",
        ),
        "images are infinite": (saved(images=infinite), finite),
        "mean is no number": (saved(mean=torch.full((1,), float("nan"))), finite),
        "std is no number": (saved(std=torch.full((1,), float("nan"))), finite),
        "std is 0": (saved(std=torch.zeros(1)), above),
    }


DAMAGES = list(damaged(safetensors.torch.save(
    {"images": torch.zeros(2, 1, 1, 1), "labels": torch.zeros(1)}, {"description": "{}"}
)))  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path, synthetic: SyntheticSet) -> None:
    path = tmp_path / "set.safetensors"
    write_synthetic_set(path, synthetic)
    content, words = damaged(path.read_bytes())[damage]
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_synthetic_set(path)
    assert str(caught.value).startswith(f"{path}: {words}") and "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.safetensors: cannot be read"):
        read_synthetic_set(tmp_path / "none.safetensors")
