"""The synthetic set as a file: safetensors, self-describing, never pickle.

Shapes: N = number of images, class after class in the order of the classes.

Tensors in the file:
    images  (N, ch, h, w) float32, normalised: what a network is trained on
    labels  (N,) int64
    mean    (ch,) float32, with std: pixel value in [0, 1] = images * std + mean
    std     (ch,) float32
Metadata: one entry `description`, a JSON object: format, class_names, and what the writer adds (the
settings, the seed, versions).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from condensation.counts import class_labels
from condensation.errors import one_line
from condensation.files import write_bytes

FORMAT = "gradient-matching synthetic set 1"
TENSORS = {"images", "labels", "mean", "std"}


@dataclass(frozen=True)
class SyntheticSet:
    """A synthetic set and what is needed to use it.

    Attributes:
        images: (N, ch, h, w) float32, normalised, class after class.
        counts: The number of images of each class, at least one.
        mean: (ch,) of the real training set, in pixel values from 0 to 1.
        std: (ch,) likewise.
        class_names: One name for each class.
        metadata: Further text, for instance the settings it was made with.
    """

    images: Tensor
    counts: tuple[int, ...]
    mean: Tensor
    std: Tensor
    class_names: tuple[str, ...]
    metadata: Mapping[str, str]

    @property
    def labels(self) -> Tensor:
        """(N,) int64: the class of each image."""
        return class_labels(self.counts)

    @property
    def pixels(self) -> Tensor:
        """(N, ch, h, w): the images as pixel values, limited to [0, 1], for looking at."""
        return denormalise(self.images, self.mean, self.std).clamp(0, 1)

    @property
    def pixels_by_class(self) -> tuple[Tensor, ...]:
        """Those of each class, (S_c, ch, h, w)."""
        parts: tuple[Tensor, ...] = self.pixels.split(list(self.counts))
        return parts


def denormalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return images (..., ch, h, w) as pixel values, which need not lie in [0, 1]."""
    return images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)


def set_path(folder: Path, index: int, iteration: int | None = None) -> Path:
    """Return where a synthetic set is: the first set in the folder itself, the next in `set-1`, ...

    Args:
        folder: `data/initial` or `data/condensed`.
        index: Which of the independent sets, from 0.
        iteration: Of a snapshot; None for the set itself.
    """
    home = folder / f"set-{index}" if index else folder
    if iteration is None:
        return home / "synthetic.safetensors"
    return home / f"snapshots/{iteration:06d}.safetensors"


def write_synthetic_set(path: Path, synthetic: SyntheticSet) -> None:
    """Write a synthetic set atomically.

    Raises:
        OSError: The file cannot be written.
    """
    write_bytes(path, encode_synthetic_set(synthetic))


def encode_synthetic_set(synthetic: SyntheticSet) -> bytes:
    """Return the content of a synthetic set's file."""
    tensors = {
        "images": synthetic.images.detach().cpu().float().contiguous(),
        "labels": synthetic.labels,
        "mean": synthetic.mean.cpu().float(),
        "std": synthetic.std.cpu().float(),
    }
    # safetensors writes metadata in the order of a hash table, which differs from run to run: one
    # entry of sorted JSON keeps the bytes the same.
    description = {
        "format": FORMAT,
        "class_names": list(synthetic.class_names),
        **synthetic.metadata,
    }
    content: bytes = safetensors.torch.save(
        tensors, {"description": json.dumps(description, sort_keys=True)}
    )
    return content


def read_synthetic_set(path: Path) -> SyntheticSet:
    """Read a synthetic set, trusting nothing in it; no more is allocated than the file holds.

    Raises:
        ValueError: The file is missing, damaged or not a synthetic set.
    """
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get("description", "{}"))
            names = TENSORS & {*file.keys()}
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path}: cannot be read as a synthetic set ({one_line(error)})") from None
    problem = _metadata_problem(description) or _tensors_problem(
        tensors, len(description["class_names"])
    )
    if problem:
        raise ValueError(f"{path}: {problem}")
    class_names = tuple(description.pop("class_names"))
    del description["format"]
    counts = tuple(tensors["labels"].bincount().tolist())
    return SyntheticSet(
        tensors["images"], counts, tensors["mean"], tensors["std"], class_names, description
    )


def check_fit(
    path: Path, synthetic: SyntheticSet, image_shape: tuple[int, int, int], classes: tuple[str, ...]
) -> None:
    """Make sure that a synthetic set is of the dataset that it is used with.

    Raises:
        ValueError: Its classes or the shape of its images are others.
    """
    if synthetic.class_names != classes:
        raise ValueError(f"{path}: its classes are not the {len(classes)} of the dataset")
    if synthetic.images.shape[1:] != image_shape:
        found = tuple(synthetic.images.shape[1:])
        raise ValueError(f"{path}: its images are {found}, those of the dataset {image_shape}")


def _metadata_problem(description: Any) -> str | None:
    # Say what is wrong with the metadata.
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        return f"is not a synthetic set of the format '{FORMAT}'"
    names = description.get("class_names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        return "its class_names are not a list of texts"
    if not all(
        isinstance(value, str) for key, value in description.items() if key != "class_names"
    ):
        return "its metadata are not texts"
    return None


def _tensors_problem(tensors: Mapping[str, Tensor], num_classes: int) -> str | None:
    # Say what is wrong with the tensors.
    if missing := TENSORS - tensors.keys():
        return f"has no tensor named {', '.join(sorted(missing))}"
    images, labels = tensors["images"], tensors["labels"]
    if images.dtype != torch.float32 or images.ndim != 4:
        return (
            f"images are {images.dtype} {tuple(images.shape)}, not float32 "
            "(images, channels, height, width)"
        )
    if images.numel() == 0:
        return f"images {tuple(images.shape)} are none"
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        return f"labels are {labels.dtype} {tuple(labels.shape)}, not int64, one for each image"
    # Before they are counted: in order, so that the last is the largest.
    if not bool((labels.diff() >= 0).all()) or not torch.equal(
        labels.unique(), torch.arange(num_classes)
    ):
        return f"labels are not those of {num_classes} classes in order, at least one of each"
    for name in ("mean", "std"):
        value = tensors[name]
        if value.dtype != torch.float32 or value.shape != (images.shape[1],):
            return (
                f"{name} is {value.dtype} {tuple(value.shape)}, not float32, one for each channel"
            )
    if not all(bool(tensors[name].isfinite().all()) for name in ("images", "mean", "std")):
        return "holds numbers that are not finite"
    if not bool((tensors["std"] > 0).all()):
        return "std is not above 0"
    return None
