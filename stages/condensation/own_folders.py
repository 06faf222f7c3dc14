"""One's own images in a folder: `train/<class>/<any name>.png` and, if wanted, `test/<class>/...`.

Shapes: N = number of images, image = (ch, h, w).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from condensation.own_parts import OwnImages, name_problems, sizes_text
from condensation.pictures import Look, decode, look
from condensation.resizing import resize

Labels = Mapping[Path, int]
"""File -> class, of one part."""


def read_folder(path: Path, image_size: int | None) -> OwnImages:
    """Read a folder of picture files by class; what is wrong with them is in the problems.

    Raises:
        ValueError: There is no folder of classes.
    """
    if not (path / "train").is_dir():
        raise ValueError(f"dataset: {path} has no folder 'train' of folders, one for each class")
    names = tuple(sorted(entry.name for entry in _visible(path / "train") if entry.is_dir()))
    problems = name_problems(names)
    closed: list[str] = []
    parts = [
        _list_part(path, part, names, problems, closed)
        for part in ("train", "test")
        if (path / part).is_dir()
    ]
    problems += closed
    looks = _look_at_all((file for part in parts for file in part), path, problems)
    num_channels = 1 if all(found.grey for found in looks.values()) else 3
    most = Counter(found.size for found in looks.values()).most_common(1)
    size = most[0][0] if most else (0, 0)
    if image_size is None:
        looks = _of_one_size(looks, size, path, problems)
    else:
        size = (image_size, image_size)
    images = [_read_part(part, looks, (num_channels, *size), path, problems) for part in parts]
    # How many images a class has is not known where its folder cannot be read.
    labels = [torch.tensor([*part.values()], dtype=torch.int64) for part in parts if not closed]
    return OwnImages(images, labels, names, problems)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _list_part(
    path: Path, part: str, names: tuple[str, ...], problems: list[str], closed: list[str]
) -> Labels:
    # Return the labels, in the order of the classes; note what is no picture of a class, and which
    # folders cannot be read.
    found: dict[Path, int] = {}
    for entry in _visible(path / part):
        if not entry.is_dir():
            problems.append(f"{part}/{entry.name}: lies beside the folders of the classes")
        elif entry.name not in names:
            problems.append(f"{part}/{entry.name}: is no class; train has {', '.join(names)}")
        else:
            try:
                files = _visible(entry)
            except OSError as error:
                closed.append(_about(entry, path, error))
                continue
            for file in files:
                if file.is_dir():
                    problems.append(f"{part}/{entry.name}/{file.name}: is a folder in a class")
                else:
                    found[file] = names.index(entry.name)
    return found


def _look_at_all(files: Iterable[Path], path: Path, problems: list[str]) -> dict[Path, Look]:
    # Return what the files say of their pictures; note which cannot be used.
    found = {}
    for file in files:
        try:
            found[file] = look(file.read_bytes())
        except (ValueError, OSError) as error:
            problems.append(_about(file, path, error))
    return found


def _of_one_size(
    looks: Mapping[Path, Look], size: tuple[int, int], path: Path, problems: list[str]
) -> dict[Path, Look]:
    # Return those of this size; note the others.
    problems += [
        f"{file.relative_to(path)}: is {sizes_text(found.size)}, most images are "
        f"{sizes_text(size)} (height x width); prepare.image_size brings all to one size"
        for file, found in looks.items()
        if found.size != size
    ]
    return {file: found for file, found in looks.items() if found.size == size}


def _read_part(
    labels: Labels,
    looks: Mapping[Path, Look],
    shape: tuple[int, int, int],
    path: Path,
    problems: list[str],
) -> Tensor:
    # Return the pictures (N, ch, h, w) of a part; note which cannot be decoded.
    images = torch.zeros(len(labels), *shape, dtype=torch.uint8)
    for index, file in enumerate(labels):
        if file not in looks:
            continue
        try:
            image = decode(file.read_bytes(), shape[0], looks[file].size)
        except (ValueError, OSError) as error:
            problems.append(_about(file, path, error))
        else:
            # Of another size only where all are brought to one, which is a square.
            images[index] = image if image.shape == shape else resize(image[None], shape[1])[0]
    return images


def _about(file: Path, path: Path, error: ValueError | OSError) -> str:
    # Of an error of the system, its reason alone: it would name the file again.
    said = str(error) if isinstance(error, ValueError) else f"cannot be read ({error.strerror})"
    return f"{file.relative_to(path)}: {said}"
