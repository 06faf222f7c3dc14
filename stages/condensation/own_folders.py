"""One's own images in a folder: `train/<class>/<any name>.png` and, if wanted, `test/<class>/...`.

Shapes: N = number of images, image = (ch, h, w).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from condensation.own_parts import OwnImages, class_name, name_problems, printable, sizes_text
from condensation.pictures import Look, decode, look
from condensation.resizing import resize

PARTS = ("train", "test")
"""The folders that images are read of; the second may be missing."""

Labels = Mapping[Path, int]
"""File -> class, of one part."""

Entries = Mapping[Path, bool]
"""What lies in a folder and is not hidden -> whether it is a folder itself."""


def read_folder(path: Path, image_size: int | None) -> OwnImages:
    """Read a folder of picture files by class; what is wrong with them is in the problems."""
    closed: list[str] = []
    beside = _list(path, path, closed)
    problems = [] if closed else _problems_of_parts(beside)
    has_train = beside.get(path / "train", False)
    classes = _list(path / "train", path, closed) if has_train else {}
    if closed or not has_train:
        return OwnImages([], [], (), problems + closed)
    names = tuple(sorted(_class_folders(classes)))
    problems += name_problems(names)
    parts = [
        _list_part(path, part, names, problems, closed)
        for part in PARTS
        if beside.get(path / part, False)
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


def unread_folders(path: Path) -> list[str]:
    """Return the names of the folders that lie beside the parts: nothing is read of them."""
    return [
        printable(entry.name)
        for entry, is_folder in _entries(path).items()
        if is_folder and entry.name not in PARTS
    ]


def _entries(folder: Path) -> dict[Path, bool]:
    # A folder that may be listed but not entered fails at the first entry.
    return {
        entry: entry.is_dir()
        for entry in sorted(folder.iterdir())
        if not entry.name.startswith(".")
    }


def _list(folder: Path, path: Path, closed: list[str]) -> Entries:
    # Return the entries of a folder; note if it cannot be read.
    try:
        return _entries(folder)
    except OSError as error:
        closed.append(_about(folder, path, error))
        return {}


def _problems_of_parts(beside: Entries) -> list[str]:
    # Say which of what lies in the folder of the parts is none, and is meant to be one.
    folders = [entry.name for entry, is_folder in beside.items() if is_folder]
    problems = []
    if "train" not in folders:
        problems.append("it has no folder 'train' of folders, one for each class")
    if "test" not in folders and any(entry.name == "test" for entry in beside):
        problems.append("test: is no folder")
    problems += [
        f"{name}: is not read; takes the name '{name.lower()}'"
        for name in folders
        if name not in PARTS and name.lower() in PARTS
    ]
    return problems


def _class_folders(entries: Entries) -> Counter[str]:
    # Return how many folders have each name, which may be written in two ways.
    return Counter(class_name(entry.name) for entry, is_folder in entries.items() if is_folder)


def _list_part(
    path: Path, part: str, names: tuple[str, ...], problems: list[str], closed: list[str]
) -> Labels:
    # Return the labels, in the order of the folders; note what is no picture of a class, and which
    # folders cannot be read.
    found: dict[Path, int] = {}
    entries = _list(path / part, path, closed)
    problems += [
        f"{part}/{name}: are {count} folders, whose names differ only in Unicode's ways to write "
        "an accented letter"
        for name, count in _class_folders(entries).items()
        if count > 1
    ]
    for entry, is_folder in entries.items():
        name = class_name(entry.name)
        if not is_folder:
            problems.append(f"{part}/{entry.name}: lies beside the folders of the classes")
        elif name not in names:
            problems.append(f"{part}/{entry.name}: is no class; train has {', '.join(names)}")
        else:
            for file, is_inner_folder in _list(entry, path, closed).items():
                if is_inner_folder:
                    problems.append(f"{part}/{entry.name}/{file.name}: is a folder in a class")
                else:
                    found[file] = names.index(name)
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
    return f"it {said}" if file == path else f"{file.relative_to(path)}: {said}"
