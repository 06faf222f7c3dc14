"""What a study keeps of its runs: the tuning of an arm as a table, a measured arm as a folder.

`tuning/<arm>.csv`   a row for each point that was tried; `chosen` marks the one that was taken
`cells/<arm>/`       record.json (settings, commit, device, versions, seconds), the tables
                     accuracy.csv, loss.csv, seconds.csv, curvature.csv and warnings.csv as the
                     stages wrote them, and images.png: the first image of each class at the start,
                     half way, at the end

Shapes: C = classes, image = (ch, h, w).
"""

import csv
import io
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from condensation.artefacts import read_synthetic_set, set_path
from condensation.files import write_bytes, write_csv, write_json
from condensation.study_runs import Run
from condensation.study_tuning import Score, Search

TABLES = {
    "loss.csv": "results/condense/loss.csv",
    "seconds.csv": "results/condense/timing.csv",
    "curvature.csv": "results/condense/curvature.csv",
    "warnings.csv": "results/condense/warnings.csv",
}
"""A table of a cell -> the stages' file that it is."""

AT_EDGE = "at the edge"

OF_TRIALS = ("accuracy", "std", "n", "seconds", "chosen")
"""The columns of a tuning table after those of what is tuned."""


@dataclass(frozen=True)
class Cell:
    """A measured arm.

    Attributes:
        record: Settings, commit, device and so on.
        accuracy: The columns network, iteration, set, index, accuracy (percent).
        loss: iteration, loss.
        seconds: iteration, seconds (of one set until then, its initial images included; the
            earliest cells, which did not note how long these took, are without them).
        curvature: iteration, curvature, ratio, cosine; empty with order 1.
        warnings: iteration, kind, classes, warning; empty where they were not kept.
        images: (3, C, ch, h, w) uint8: at the start, half way, at the end.
    """

    record: Mapping[str, Any]
    accuracy: pd.DataFrame
    loss: pd.DataFrame
    seconds: pd.DataFrame
    curvature: pd.DataFrame
    warnings: pd.DataFrame
    images: np.ndarray


def scores_of(run: Run) -> pd.DataFrame:
    """Return the accuracy of every network: network, iteration, set, index, accuracy (percent)."""
    tables = [
        pd.read_csv(run.folder / f"results/evaluate/{name}/networks.csv") for name in run.networks
    ]
    return pd.concat(tables, ignore_index=True)


def tuning_score(run: Run) -> Score:
    """Return what a finished run of a tuning came to.

    The accuracy is the mean over the networks of the mean over the iterations that are evaluated:
    with snapshots, a set that is good early counts for more.
    """
    table = scores_of(run)
    by_iteration = table.groupby(["set", "network", "iteration"])["accuracy"].mean()
    by_network = by_iteration.groupby(["set", "network"]).mean()
    of_sets = by_network.groupby("set").mean().tolist()
    seconds = round(sum(row["seconds"] for row in run.attempts()), 1)
    std = round(statistics.stdev(of_sets), 2) if len(of_sets) > 1 else None
    return Score(round(statistics.fmean(of_sets), 2), std, len(of_sets), seconds)


def write_tuning(path: Path, found: Search) -> None:
    """Write every point that was tried; `chosen` says `yes`, or which keys are at an edge."""
    keys = list(found.chosen)
    said = "yes" if not found.at_edge else f"{AT_EDGE}: {' '.join(found.at_edge)}"
    rows = [
        (
            *(trial.values[key] for key in keys),
            *("" if value is None else value for value in trial.score),
            said if trial.values == found.chosen else "",
        )
        for trial in found.trials
    ]
    write_csv(path, [*keys, *OF_TRIALS], rows)


def read_chosen(path: Path) -> dict[str, float]:
    """Return the values that a tuning chose; none where nothing was tuned.

    Raises:
        ValueError: The table is missing or has no chosen row.
    """
    try:
        with path.open(newline="") as file:
            rows = [*csv.DictReader(file)]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); tune the arm first") from None
    chosen = [row for row in rows if row["chosen"]]
    if rows and len(chosen) != 1:
        raise ValueError(f"{path}: {len(chosen)} rows are chosen, not 1")
    return {
        key: json.loads(value)
        for row in chosen
        for key, value in row.items()
        if key not in OF_TRIALS
    }


def is_at_edge(path: Path) -> bool:
    """Return whether a tuning chose a value beyond which it had not tried."""
    return path.exists() and AT_EDGE in path.read_text()


def write_cell(folder: Path, run: Run, record: Mapping[str, Any]) -> None:
    """Take what a finished run has measured."""
    write_json(folder / "record.json", record)
    write_bytes(folder / "accuracy.csv", scores_of(run).to_csv(index=False).encode())
    for name, source in TABLES.items():
        write_bytes(folder / name, (run.folder / source).read_bytes())
    write_bytes(folder / "images.png", encode_images(images_of(run)))


def images_of(run: Run) -> np.ndarray:
    """Return the first set's first image of each class: (3, C, ch, h, w) uint8.

    At the start, at the kept iteration nearest to half way, and at the end.
    """
    condensed = run.folder / "data/condensed"
    kept = sorted(int(path.stem) for path in (condensed / "snapshots").glob("*.safetensors"))
    half = min(kept, key=lambda iteration: abs(iteration - kept[-1] / 2))
    shown = []
    for iteration in (0, half, kept[-1]):
        by_class = read_synthetic_set(set_path(condensed, 0, iteration)).pixels_by_class
        pixels = torch.stack([of_class[0] for of_class in by_class])
        shown.append((pixels * 255).round().byte().numpy())
    return np.stack(shown)


def encode_images(images: np.ndarray) -> bytes:
    """Return images (3, C, ch, h, w) uint8 as one PNG: a row for each time, a column a class."""
    rows, classes, channels, height, width = images.shape
    sheet = images.transpose(0, 3, 1, 4, 2).reshape(rows * height, classes * width, channels)
    buffer = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def decode_images(content: bytes) -> np.ndarray:
    """Return the images (3, C, ch, h, w) of such a PNG; they are as wide as high."""
    with Image.open(io.BytesIO(content)) as picture:
        sheet = np.atleast_3d(np.asarray(picture))
    side = len(sheet) // 3
    return sheet.reshape(3, side, -1, side, sheet.shape[-1]).transpose(0, 2, 4, 1, 3)


def read_cell(folder: Path) -> Cell | None:
    """Read a cell; None where it has not been measured."""
    if not (folder / "record.json").exists():
        return None
    record = json.loads((folder / "record.json").read_text())
    seconds = pd.read_csv(folder / "seconds.csv")[["iteration", "seconds"]]
    seconds["seconds"] += record["seconds"].get("initialize", 0.0)
    warnings = folder / "warnings.csv"
    return Cell(
        record=record,
        accuracy=pd.read_csv(folder / "accuracy.csv"),
        loss=pd.read_csv(folder / "loss.csv"),
        seconds=seconds.assign(seconds=seconds["seconds"] / record["settings"]["sets"]),
        curvature=pd.read_csv(folder / "curvature.csv"),
        warnings=pd.read_csv(warnings) if warnings.exists() else pd.DataFrame(),
        images=decode_images((folder / "images.png").read_bytes()),
    )


def describe(values: Mapping[str, float]) -> str:
    """Return chosen values as a text: the last part of each key, and the value."""
    return ", ".join(f"{key.rpartition('.')[2]} {value:g}" for key, value in values.items())


def protocols_of(run: Run) -> dict[str, str]:
    """Return the name of the evaluation of each network."""
    metrics = [run.folder / f"results/evaluate/{name}/metrics.json" for name in run.networks]
    named = {key: value for path in metrics for key, value in json.loads(path.read_text()).items()}
    return {name: values["protocol"] for name, values in named.items()}


def device_of(run: Run) -> str:
    """Return what a run was condensed on."""
    return str(pd.read_csv(run.folder / TABLES["seconds.csv"])["device"].iloc[-1])
