"""What `condense` writes: the sets with their snapshots, the curves, and the last good images.

Shapes: K = sets, N = synthetic images of a set, class after class, image = (ch, h, w).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from condensation.artefacts import (
    SyntheticSet,
    check_fit,
    encode_synthetic_set,
    read_synthetic_set,
    set_path,
    write_synthetic_set,
)
from condensation.checkpoints import Checkpoints, shown
from condensation.condensation_progress import Condensation
from condensation.files import write_at_once, write_csv
from condensation.product import write_product
from condensation.sources import Source


def read_initial(
    folder: Path, num_sets: int, image_shape: tuple[int, int, int], classes: tuple[str, ...]
) -> list[SyntheticSet]:
    """Read the initial sets.

    Raises:
        ValueError: One does not fit the dataset, or the first of them.
    """
    initial: list[SyntheticSet] = []
    for k in range(num_sets):
        path = set_path(folder, k)
        initial.append(read_synthetic_set(path))
        check_fit(path, initial[k], image_shape, classes)
        if initial[k].counts != initial[0].counts:
            raise ValueError(f"{path}: has other numbers of images per class than the first set")
    return initial


def write_sets(
    folder: Path,
    initial: Sequence[SyntheticSet],
    snapshots: Mapping[int, Tensor],
    record: Mapping[str, str],
    settings: Mapping[str, Any],
    source: Source,
) -> None:
    """Write every set: its snapshots, the last of them as the set itself, card and pictures.

    Args:
        folder: Where to.
        initial: The sets as they began.
        snapshots: Iteration -> images (K, N, ch, h, w).
        record: How they were made, for the metadata of each file.
        settings: The same at more length, for the card.
        source: Where the dataset is from.
    """
    for k, begun in enumerate(initial):
        metadata = {**begun.metadata, **record}
        for iteration, images in snapshots.items():
            noted = {**metadata, "iteration": str(iteration)}
            synthetic = dataclasses.replace(begun, images=images[k], metadata=noted)
            write_synthetic_set(set_path(folder, k, iteration), synthetic)
        last = max(snapshots)
        noted = {**metadata, "iteration": str(last)}
        final = dataclasses.replace(begun, images=snapshots[last][k], metadata=noted)
        path = set_path(folder, k)
        write_synthetic_set(path, final)
        shown_settings = {**metadata, **settings}
        del shown_settings["condense"]
        write_product(path.parent, final, source, shown_settings)


def write_curves(
    folder: Path, done: Condensation, class_names: tuple[str, ...], device: str
) -> None:
    """Write the losses, what is known of the curvature term, the warnings, and the seconds."""
    write_csv(
        folder / "loss.csv",
        ["iteration", "loss"],
        [(i, f"{sum(row):.6g}") for i, row in enumerate(done.losses, start=1)],
    )
    write_csv(
        folder / "loss_by_class.csv",
        ["iteration", "class", "loss"],
        [
            (i, name, f"{value:.6g}")
            for i, row in enumerate(done.losses, start=1)
            for name, value in zip(class_names, row, strict=True)
        ],
    )
    write_csv(
        folder / "curvature.csv",
        ["iteration", "curvature", "ratio", "cosine"],
        [(int(i), *(f"{value:.4g}" for value in values)) for i, *values in done.curvature],
    )
    write_csv(
        folder / "warnings.csv",
        ["iteration", "kind", "classes", "warning"],
        [(i, kind, ", ".join(names), text) for i, kind, names, text in done.warnings],
    )
    write_csv(
        folder / "timing.csv",
        ["iteration", "seconds", "device"],
        [(i, f"{spent:.2f}", device) for i, spent in done.timing],
    )


def keep_last(images: SyntheticSet, iteration: int, checkpoints: Checkpoints) -> str:
    """Write the last images that are numbers, and say where; nothing where nothing can be kept."""
    if checkpoints.folder is None:
        return ""
    path = checkpoints.folder / f"iteration-{iteration:06d}.safetensors"
    record = {**images.metadata, "iteration": str(iteration)}
    write_at_once(path, encode_synthetic_set(dataclasses.replace(images, metadata=record)))
    return f"; the images of iteration {iteration} are in {shown(path)}"
