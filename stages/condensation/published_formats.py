"""Synthetic sets as others publish them: files of `torch.save`, read without running their code.

Two layouts are known, told apart by their outermost container:
    dict with `data`: [[images, labels], ...], one pair for each synthetic set (the code of Zhao,
        Mopuri and Bilen, ICLR 2021, and what descends from it); images are normalised.
    list [images, labels]: one set (Kim et al., "Dataset condensation via efficient synthetic-data
        parameterization", ICML 2022); images are pixel values from 0 to 1.

Shapes: N = number of images, image = (ch, h, w).
"""

import io
import pickle
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# The accuracies beside the images of the first layout are numbers of NumPy, 1 or 2. Building them
# runs nothing of the file's choosing.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")},
]


class PublishedSets(NamedTuple):
    """What a file holds.

    Attributes:
        sets: Pairs of images (N, ch, h, w) float32 and labels (N,) int64.
        scale: `normalised` or `pixels`: what the layout says the images are.
    """

    sets: list[tuple[Tensor, Tensor]]
    scale: str


def read_published_sets(path: Path) -> PublishedSets:
    """Read the synthetic sets of a `.pt` file.

    Raises:
        ValueError: The file is missing or damaged, would run code, or has another layout.
    """
    content = _load(path)
    if isinstance(content, dict) and isinstance(content.get("data"), list | tuple):
        pairs, scale = list(content["data"]), "normalised"
    elif isinstance(content, list | tuple) and len(content) == 2:
        pairs, scale = [content], "pixels"
    else:
        raise ValueError(
            f"{path}: holds {_describe(content)}; takes {{'data': [[images, labels], ...]}} or "
            "[images, labels]"
        )
    if not pairs:
        raise ValueError(f"{path}: 'data' is empty")
    return PublishedSets([_pair(path, pair) for pair in pairs], scale)


def _load(path: Path) -> Any:
    """Return the content, built of tensors, numbers and containers alone.

    Raises:
        ValueError: The file is missing or damaged, or would run code.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMBERS):
            warnings.simplefilter("ignore")  # of old formats of `torch.save`
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            reason = "it asks for code to be run, which is refused; takes tensors and numbers only"
        else:
            reason = "it is no file of torch.save"
    except Exception:  # whatever the bytes lead the reader to, struct.error among others
        reason = "it is damaged, no file of torch.save, or larger than the memory"
    raise ValueError(f"{path}: cannot be loaded: {reason}")


def _pair(path: Path, pair: Any) -> tuple[Tensor, Tensor]:
    """Check one pair of images and labels.

    Raises:
        ValueError: It is something else.
    """
    if not (isinstance(pair, list | tuple) and len(pair) == 2):
        raise ValueError(f"{path}: a set is {_describe(pair)}, not [images, labels]")
    images, labels = pair
    for name, tensor, num_axes, axes in (
        ("images", images, 4, "(images, channels, height, width)"),
        ("labels", labels, 1, "(images)"),
    ):
        if not isinstance(tensor, Tensor) or tensor.ndim != num_axes:
            raise ValueError(f"{path}: {name} are {_describe(tensor)}, not a tensor {axes}")
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(f"{path}: has {len(images)} images and {len(labels)} labels")
    if not images.is_floating_point():
        raise ValueError(f"{path}: images are {images.dtype}, not floating-point numbers")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{path}: labels are {labels.dtype}, not whole numbers")
    return images.detach().float().contiguous(), labels.detach().long()


def _describe(value: Any) -> str:
    """Say what a value is, in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, list(value)[:5])) or 'none'}"
    return f"a {type(value).__name__}"
