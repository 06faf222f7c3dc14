"""The user's own images: a folder of image files by class, or one `.npz` file of arrays.

A folder holds `train/<class>/<any name>.png` (or another format that Pillow reads) and, if wanted,
`test/<class>/...`; an `.npz` file holds `images` (N, h, w) or (N, h, w, ch) uint8 and `labels` (N,)
whole numbers from 0, and if wanted `test_images`, `test_labels` and `class_names` (C,). Where there
is no test part, one is drawn.

Shapes: N = number of images, C = classes, image = (ch, h, w).
"""

import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from condensation.errors import one_line
from condensation.randomness import generator
from condensation.raw_dataset import RawDataset
from condensation.resizing import resize

TEST_SHARE = 5
"""Where there is no test part: one image of so many of each class, and at least one."""
_GREY, _COLOUR = frozenset({"1", "L", "LA"}), frozenset({"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_ARRAYS = ("images", "labels", "test_images", "test_labels", "class_names")


def read_own_images(path: Path, image_size: int | None, seed: int) -> RawDataset:
    """Read a folder of images by class or an `.npz` file.

    Args:
        path: The folder or the file.
        image_size: Height and width that every image is brought to; None: all have one size.
        seed: Draws the test part where there is none.

    Raises:
        ValueError: Something is missing, unreadable, of another size or wrongly labelled; all that
            is wrong is named, a line each.
    """
    if path.is_dir():
        train, test, names = _read_folder(path, image_size)
    elif path.suffix == ".npz" and path.is_file():
        train, test, names = _read_arrays(path, image_size)
    else:
        raise ValueError(
            f"dataset: got {path}, takes a folder with train/<class>/<images> or an .npz file, "
            "and there is none"
        )
    _check_classes(path, train[1], test and test[1], names)
    if test is None:
        chosen = _draw_test(train[1], len(names), seed)
        images, labels = train
        train, test = (images[~chosen], labels[~chosen]), (images[chosen], labels[chosen])
    return RawDataset(*train, *test, names)


_Part = tuple[Tensor, Tensor]  # images (N, ch, h, w) uint8 and labels (N,) int64


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        raise ValueError("\n  ".join([f"dataset: {path} cannot be used:", *problems]))


def _check_classes(path: Path, train: Tensor, test: Tensor | None, names: tuple[str, ...]) -> None:
    problems = [] if len(names) > 1 else [f"it has {len(names)} class, takes at least 2"]
    least = 1 if test is not None else 2
    for name, count in zip(names, train.bincount(minlength=len(names)).tolist(), strict=True):
        if count < least:
            part = "" if test is not None else " (one of them becomes the test part)"
            problems.append(
                f"class '{name}' has {count} training images, takes at least {least}{part}"
            )
    if test is not None:
        for name, count in zip(names, test.bincount(minlength=len(names)).tolist(), strict=True):
            if count < 1:
                problems.append(f"class '{name}' has no test image")
    _refuse(path, problems)


def _draw_test(labels: Tensor, num_classes: int, seed: int) -> Tensor:
    # Return which of the images (N,) become the test part.
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(num_classes):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "test part", label))
        chosen[members[order[: max(1, len(members) // TEST_SHARE)]]] = True
    return chosen


def _read_folder(path: Path, image_size: int | None) -> tuple[_Part, _Part | None, tuple[str, ...]]:
    if not (path / "train").is_dir():
        raise ValueError(f"dataset: {path} has no folder 'train' of folders, one for each class")
    names = tuple(sorted(entry.name for entry in _visible(path / "train") if entry.is_dir()))
    problems: list[str] = []
    parts = {}
    for part in ("train", "test"):
        if (path / part).is_dir():
            parts[part] = _list_part(path, part, names, problems)
    files = [file for part in parts.values() for file in part]
    modes_and_sizes = {file: _look_at(file, path, problems) for file in files}
    found = [each for each in modes_and_sizes.values() if each is not None]
    size = Counter(size for _, size in found).most_common(1)[0][0] if found else (0, 0)
    num_channels = 1 if all(mode in _GREY for mode, _ in found) else 3
    if image_size is not None:
        size = (image_size, image_size)
    read: list[_Part] = []
    for listed in parts.values():
        images = torch.zeros(len(listed), num_channels, *size, dtype=torch.uint8)
        for index, file in enumerate(listed):
            looked = modes_and_sizes[file]
            if looked is None:
                continue
            if image_size is None and looked[1] != size:
                # Before it is decoded: what a damaged file announces may be enormous.
                problems.append(
                    f"{file.relative_to(path)}: is {_shown(looked[1])}, most images are "
                    f"{_shown(size)} (height x width); prepare.image_size brings all to one size"
                )
                continue
            image = _decode(file, num_channels, path, problems)
            if image is not None:
                fitting = image if image_size is None else resize(image[None], image_size)[0]
                images[index] = fitting
        read.append((images, torch.tensor([*listed.values()], dtype=torch.int64)))
    _refuse(path, problems)
    return read[0], read[1] if len(read) > 1 else None, names


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _list_part(
    path: Path, part: str, names: tuple[str, ...], problems: list[str]
) -> dict[Path, int]:
    # Return file -> label, in the order of the classes; note what is no image of a class.
    found: dict[Path, int] = {}
    for entry in _visible(path / part):
        if not entry.is_dir():
            problems.append(f"{part}/{entry.name}: lies beside the folders of the classes")
        elif entry.name not in names:
            problems.append(f"{part}/{entry.name}: is no class; train has {', '.join(names)}")
        else:
            for file in _visible(entry):
                if file.is_dir():
                    problems.append(f"{part}/{entry.name}/{file.name}: is a folder in a class")
                else:
                    found[file] = names.index(entry.name)
    return found


def _look_at(file: Path, path: Path, problems: list[str]) -> tuple[str, tuple[int, int]] | None:
    # Return mode and (height, width) of an image file; note why it cannot be used.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with _opened(file) as image:
                mode, (width, height) = image.mode, image.size
    except Exception as error:  # a decoder stumbles over damaged bytes in a way of its own
        problems.append(f"{file.relative_to(path)}: cannot be read ({_line(error, file)})")
        return None
    if mode not in _GREY | _COLOUR:
        problems.append(
            f"{file.relative_to(path)}: has pixels of the kind {mode}, takes 8 bits a channel"
        )
        return None
    return mode, (height, width)


def _opened(file: Path) -> Image.Image:
    # From memory: of a file on the disk, Python allocates as much as a damaged one announces.
    return Image.open(io.BytesIO(file.read_bytes()))


def _decode(file: Path, num_channels: int, path: Path, problems: list[str]) -> Tensor | None:
    # Return an image (ch, h, w); transparency is left out.
    try:
        with _opened(file) as image:
            array = np.array(image.convert("L" if num_channels == 1 else "RGB"))
    except Exception as error:
        problems.append(f"{file.relative_to(path)}: cannot be read ({_line(error, file)})")
        return None
    pixels = torch.from_numpy(array)
    return pixels[None] if num_channels == 1 else pixels.permute(2, 0, 1)


def _read_arrays(path: Path, image_size: int | None) -> tuple[_Part, _Part | None, tuple[str, ...]]:
    arrays, problems = _load_arrays(path)
    _refuse(path, problems)
    pairs = [("images", "labels")]
    if "test_images" in arrays or "test_labels" in arrays:
        pairs.append(("test_images", "test_labels"))
    names = tuple(map(str, arrays["class_names"].tolist())) if "class_names" in arrays else None
    for pair in pairs:
        problems += _problems_of(arrays, *pair, names)
    if names is not None and len(set(names)) < len(names):
        problems.append("class_names: a name is given twice")
    if len(pairs) == 2 and not problems:
        shapes = [arrays[images].shape[1:] for images, _ in pairs]
        if shapes[0] != shapes[1]:
            problems.append(f"test_images: are {_shown(shapes[1])}, images {_shown(shapes[0])}")
    _refuse(path, problems)
    if names is None:
        names = tuple(map(str, range(int(arrays["labels"].max()) + 1)))
    read = [
        _as_part(arrays[images], arrays[labels].astype(np.int64), image_size)
        for images, labels in pairs
    ]
    return read[0], read[1] if len(read) > 1 else None, names


def _load_arrays(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    arrays: dict[str, np.ndarray] = {}
    problems = []
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            for name in _ARRAYS:
                if name in file.files:
                    array = file[name]
                    if not isinstance(array, np.ndarray):
                        raise ValueError(f"{name} is no array")
                    arrays[name] = array
    except Exception as error:  # whatever the bytes lead the readers of zip and npy to
        problems.append(f"it cannot be read ({_line(error, path)})")
        return arrays, problems
    problems += [f"{name}: is missing" for name in ("images", "labels") if name not in arrays]
    return arrays, problems


def _problems_of(
    arrays: Mapping[str, np.ndarray],
    images_name: str,
    labels_name: str,
    names: Sequence[str] | None,
) -> list[str]:
    # Say what is wrong with images and labels.
    problems = [f"{name}: is missing" for name in (images_name, labels_name) if name not in arrays]
    if problems:
        return problems
    images, labels = arrays[images_name], arrays[labels_name]
    grey_or_colour = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not grey_or_colour or 0 in images.shape:
        problems.append(
            f"{images_name}: are {images.dtype} {_shown(images.shape)}, take uint8, images x "
            "height x width, or that x 1 or 3 channels"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        problems.append(
            f"{labels_name}: are {labels.dtype} {_shown(labels.shape)}, take one whole number "
            f"for each of the {len(images)} images"
        )
        return problems
    # Without names the training labels say which classes there are.
    last = int(arrays["labels"].max()) if names is None else len(names) - 1
    if names is None and last >= len(arrays["labels"]):
        problems.append(f"labels: one is {last}; takes no more classes than there are images")
        return problems
    for index in ((labels < 0) | (labels > last)).nonzero()[0].tolist():
        problems.append(
            f"{labels_name}: that of image {index} is {labels[index]}, no class from 0 to {last}"
        )
    return problems


def _as_part(images: np.ndarray, labels: np.ndarray, image_size: int | None) -> _Part:
    pixels = torch.from_numpy(images)
    pixels = pixels[:, None] if images.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if image_size is not None:
        pixels = resize(pixels, image_size)
    return pixels.contiguous(), torch.from_numpy(labels)


def _shown(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _line(error: BaseException, path: Path) -> str:
    return one_line(str(error).replace(str(path), "the file")) or type(error).__name__
