"""One's own images in one `.npz` file of arrays.

`images` (N, h, w) or (N, h, w, ch) uint8 and `labels` (N,) whole numbers from 0, and if wanted
`test_images`, `test_labels` and `class_names` (C,).

Shapes: N = number of images, C = classes, image = (ch, h, w).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from condensation.own_parts import OwnImages, class_name, name_problems, reason, sizes_text
from condensation.resizing import resize

_ARRAYS = ("images", "labels", "test_images", "test_labels", "class_names")

Arrays = Mapping[str, np.ndarray]


def read_arrays(path: Path, image_size: int | None) -> OwnImages:
    """Read an `.npz` file; what is wrong with it is in the problems."""
    try:
        arrays, there, problems = _load(path)
    except Exception as error:  # whatever the bytes lead the readers of zip and npy to
        said = reason(error).replace(str(path), "the file")
        return OwnImages([], [], (), [f"it cannot be read ({said})"])
    pairs = [("images", "labels")]
    if {"test_images", "test_labels"} & there:
        pairs.append(("test_images", "test_labels"))
    problems += [f"{name}: is missing" for pair in pairs for name in pair if name not in there]
    whole = [pair for pair in pairs if arrays.keys() >= {*pair}]
    names, wrong_names = _class_names(arrays)
    num_classes = None if names is None else len(names)
    wrong_labels = [
        text for pair in whole for text in _problems_of_labels(arrays, *pair, num_classes)
    ]
    wrong_images = {name: _problems_of_images(arrays, name) for name, _ in pairs if name in arrays}
    problems += [text for wrong in wrong_images.values() for text in wrong]
    problems += _problems_of_shapes(
        [_shape(arrays[name], image_size) for name, wrong in wrong_images.items() if not wrong]
    )
    problems += wrong_labels + wrong_names
    images = [_pixels(arrays[name], image_size) for name, _ in pairs if not problems]
    some = all(arrays[name].size for pair in whole for name in pair)
    known = whole == pairs and some and names is not None and not wrong_labels
    labels = [torch.from_numpy(arrays[name].astype(np.int64)) for _, name in pairs if known]
    return OwnImages(images, labels, names or (), problems)


def _load(path: Path) -> tuple[dict[str, np.ndarray], set[str], list[str]]:
    # Return the arrays that can be read, the names of all that are there, and what is wrong.
    arrays: dict[str, np.ndarray] = {}
    problems = []
    with path.open("rb") as opened:
        file = np.load(opened, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        for name in file.files:
            if name not in _ARRAYS:
                problems.append(f"{name}: is not known; takes {', '.join(_ARRAYS)}")
                continue
            try:
                arrays[name] = _array(file, name)
            except Exception as error:
                problems.append(f"{name}: cannot be read ({reason(error)})")
    return arrays, {*file.files}, problems


def _array(file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    array = file[name]
    if not isinstance(array, np.ndarray):
        raise ValueError("it is no array")
    return array


def _class_names(arrays: Arrays) -> tuple[tuple[str, ...] | None, list[str]]:
    # Return the names, None where it is not known which class a label means, and what is wrong.
    given, labels = arrays.get("class_names"), arrays.get("labels")
    names, problems = (None, []) if given is None else _given_names(given)
    if labels is None or labels.dtype.kind not in "iu" or labels.ndim != 1 or not labels.size:
        return names, problems  # wrong labels are told elsewhere
    last = int(labels.max())
    from_one = given is None or (names is not None and last == len(names))
    if labels.min() == 1 and from_one and not _has_zero(arrays.get("test_labels")):
        # Other tools count from 1. Said once, in place of a line for each image of the last class.
        too = ", from test_labels too" if "test_labels" in arrays else ""
        text = f"labels: are from 1 to {last}, take whole numbers from 0: subtract 1{too}"
        return None, [*problems, text]
    return _numbers(labels) if given is None else (names, problems)


def _has_zero(labels: np.ndarray | None) -> bool:
    return labels is not None and labels.dtype.kind in "iu" and 0 in labels


def _given_names(given: np.ndarray) -> tuple[tuple[str, ...] | None, list[str]]:
    if given.ndim != 1 or given.dtype.kind not in "US" or not given.size:
        what = f"class_names: are {given.dtype} {sizes_text(given.shape)}"
        return None, [f"{what}, take one text for each class"]
    try:
        names = tuple(
            class_name(name.decode() if isinstance(name, bytes) else str(name))
            for name in given.tolist()
        )
    except UnicodeDecodeError as error:
        return None, [f"class_names: are bytes that are not UTF-8 ({reason(error)})"]
    problems = [f"class_names: {text}" for text in name_problems(names)]
    if len(set(names)) < len(names):
        problems.append("class_names: a name is given twice")
    return names, problems


def _numbers(labels: np.ndarray) -> tuple[tuple[str, ...] | None, list[str]]:
    # Without names the training labels say which classes there are.
    last, count = int(labels.max()), len(labels)
    if last < count:
        return tuple(map(str, range(max(last, 0) + 1))), []
    wrong = ((labels < 0) | (labels >= count)).nonzero()[0].tolist()
    return None, [
        f"labels: that of image {index} is {labels[index]}, takes whole numbers from 0 to "
        f"{count - 1}: no more classes than there are images"
        for index in wrong
    ]


def _problems_of_images(arrays: Arrays, name: str) -> list[str]:
    images = arrays[name]
    if images.shape[:1] == (0,):
        return [f"{name}: there are none"]
    grey_or_colour = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype == np.uint8 and grey_or_colour and 0 not in images.shape:
        return []
    return [
        f"{name}: are {images.dtype} {sizes_text(images.shape)}, take uint8, images x height x "
        "width, or that x 1 or 3 channels"
    ]


def _problems_of_labels(
    arrays: Arrays, images_name: str, labels_name: str, num_classes: int | None
) -> list[str]:
    images, labels = arrays[images_name], arrays[labels_name]
    if images.shape[:1] == (0,):
        return []
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or labels.shape != images.shape[:1]:
        count = len(images) if images.ndim else 1
        return [
            f"{labels_name}: are {labels.dtype} {sizes_text(labels.shape)}, take one whole number "
            f"for each of the {count} images"
        ]
    if num_classes is None:
        return []
    last = num_classes - 1
    return [
        f"{labels_name}: that of image {index} is {labels[index]}, no class from 0 to {last}"
        for index in ((labels < 0) | (labels > last)).nonzero()[0].tolist()
    ]


def _problems_of_shapes(shapes: list[tuple[int, ...]]) -> list[str]:
    # Say how the parts' images differ; `shapes` are as of `_shape`.
    if len(shapes) < 2:
        return []
    (channels, *size), (test_channels, *test_size) = shapes
    problems = []
    if channels != test_channels:
        problems.append(f"test_images: have channels: {test_channels}, images: {channels}")
    if size != test_size:
        problems.append(
            f"test_images: are {sizes_text(test_size)}, images {sizes_text(size)} (height x "
            "width); prepare.image_size brings all to one size"
        )
    return problems


def _shape(images: np.ndarray, image_size: int | None) -> tuple[int, ...]:
    # (N, h, w) or (N, h, w, ch) -> (ch, h, w), or (ch,) where all are brought to one size.
    channels = 1 if images.ndim == 3 else images.shape[3]
    return (channels, *images.shape[1:3]) if image_size is None else (channels,)


def _pixels(images: np.ndarray, image_size: int | None) -> Tensor:
    # (N, h, w) or (N, h, w, ch) -> (N, ch, h, w)
    pixels = torch.from_numpy(images)
    pixels = pixels[:, None] if images.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if image_size is not None:
        pixels = resize(pixels, image_size)
    return pixels.contiguous()
