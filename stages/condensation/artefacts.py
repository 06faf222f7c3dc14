"""The synthetic set as a file: safetensors, self-describing, never pickle.

Shapes: N = number of images = classes x images per class, in the order of the classes.

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

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from condensation.files import write_bytes

FORMAT = "gradient-matching synthetic set 1"


@dataclass(frozen=True)
class SyntheticSet:
    """A synthetic set and what is needed to use it.

    Attributes:
        images: (C, S, ch, h, w) float32, normalised.
        mean: (ch,) of the real training set, in pixel values from 0 to 1.
        std: (ch,) likewise.
        class_names: One name for each class.
        metadata: Further text, for instance the settings it was made with.
    """

    images: Tensor
    mean: Tensor
    std: Tensor
    class_names: tuple[str, ...]
    metadata: Mapping[str, str]

    @property
    def labels(self) -> Tensor:
        """(C, S) int64: the class of each image."""
        num_classes, ipc = self.images.shape[:2]
        return torch.arange(num_classes).repeat_interleave(ipc).view(num_classes, ipc)

    @property
    def pixels(self) -> Tensor:
        """(C, S, ch, h, w): the images as pixel values, limited to [0, 1], for looking at."""
        return (self.images * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)).clamp(0, 1)


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
        "images": synthetic.images.detach().cpu().float().flatten(0, 1).contiguous(),
        "labels": synthetic.labels.flatten(),
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
    """Read a synthetic set.

    Raises:
        ValueError: The file is missing, damaged or not a synthetic set.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("description", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a synthetic set ({error})") from None
    if not isinstance(metadata, dict) or metadata.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: is not a synthetic set of the format '{FORMAT}'")
    class_names = tuple(metadata.pop("class_names", ()))
    missing = {"images", "labels", "mean", "std"} - tensors.keys()
    if missing:
        raise ValueError(f"{path}: has no tensor named {', '.join(sorted(missing))}")
    images, labels = tensors["images"], tensors["labels"]
    num_classes = len(class_names)
    if images.dtype != torch.float32 or images.ndim != 4:
        raise ValueError(f"{path}: images are {images.dtype} {tuple(images.shape)}, not float32 "
                         "(images, channels, height, width)")  # fmt: skip
    if num_classes == 0 or len(images) % num_classes != 0 or len(images) == 0:
        raise ValueError(f"{path}: {len(images)} images do not divide by {num_classes} classes")
    synthetic = SyntheticSet(
        images.unflatten(0, (num_classes, -1)),
        tensors["mean"],
        tensors["std"],
        class_names,
        metadata,
    )
    if not torch.equal(labels, synthetic.labels.flatten()):
        raise ValueError(
            f"{path}: labels are not {num_classes} classes in order, equally many each"
        )
    return synthetic
