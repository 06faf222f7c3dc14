"""What the other stages wrote -> figures, one table of all accuracies, and the report."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from condensation.animation import animation
from condensation.artefacts import read_synthetic_set, set_path
from condensation.class_plots import class_accuracies, confusion_panels
from condensation.datasets import Dataset, load_training
from condensation.documents import to_html, to_markdown
from condensation.errors import one_line
from condensation.figure_style import save, undrawable
from condensation.files import check_writable, together, write_bytes
from condensation.image_grids import image_grid, snapshot_strip, start_and_end
from condensation.image_sets import is_folder, load_image_sets
from condensation.metrics import read_metrics
from condensation.params import Params, load_params, run_stage
from condensation.plots import accuracy_curve, loss_curve, retained_bars
from condensation.report import report_blocks
from condensation.sources import published_statistics, short_name

RESULTS = Path("results")
TIMING = ("iteration", "seconds", "device")
CURVE = ("network", "iteration", "accuracy", "std", "n", "ceiling")
CLASSES = ("accuracy", "std", "n")
CONFUSION = ("predicted", "count")
BASELINE = ("ceiling", "ceiling_n")
EVALUATE = ("accuracy", "n")
"""What is needed of each file."""


def main() -> None:
    """Run the stage."""
    params = load_params(Path("params.yaml"))
    check_writable(RESULTS / "report.html", RESULTS / "figures/accuracy.png")
    with together():
        render(params)


def render(params: Params) -> None:
    """Draw and write everything."""
    names = params.evaluate.networks
    dataset = load_training(Path("data/prepared"), params.split)
    print(f"render: figures and report of {', '.join(names)}; CPU; less than a minute", flush=True)
    if signs := undrawable(dataset.class_names):
        print(f"render: no font of this machine has {signs[:40]}: boxes are drawn in their place")

    curves = read_curves(names)
    # Only the networks that are evaluated now: DVC would also plot the files of earlier ones.
    accuracy = pd.concat(curves.values())
    write_bytes(RESULTS / "accuracy.csv", accuracy.to_csv(index=False).encode())
    classes = {n: read_classes(RESULTS / f"evaluate/{n}/classes.csv", *CLASSES) for n in names}
    confusions = {
        n: read_classes(RESULTS / f"evaluate/{n}/confusion.csv", *CONFUSION) for n in names
    }
    drawn: dict[str, Figure] = {
        **(image_figures(params, dataset)),
        "retained": retained_bars(curves),
        "classes": class_accuracies(classes, dataset.class_names),
        "confusion": confusion_panels(confusions, dataset.class_names),
    }
    files = {}
    if is_folder(params.evaluate.images):  # images from elsewhere have no history
        loss = read_table(RESULTS / "condense/loss.csv", "iteration", "loss")
        loss_by_class = read_classes(RESULTS / "condense/loss_by_class.csv", "iteration", "loss")
        drawn["loss"] = loss_curve(loss, loss_by_class, dataset.class_names)
        drawn["accuracy"] = accuracy_curve(curves)
        drawn["seconds"] = accuracy_curve(curves, "seconds")
        files["animation"] = RESULTS / "figures/animation.gif"
        frames = {
            int(path.stem): [of_class[:1] for of_class in read_by_class(path)]
            for path in sorted(Path("data/condensed/snapshots").glob("*.safetensors"))
        }
        write_bytes(files["animation"], animation(frames, dataset.class_names))
    for name, figure in drawn.items():
        files[name] = RESULTS / f"figures/{name}.png"
        # The vector file first: drawing a PNG leaves a layout that depends on its dots.
        save(figure, RESULTS / f"vector/{name}.pdf", params.render.dpi)
        save(figure, files[name], params.render.dpi)

    metrics = {
        n: read_metrics(RESULTS / f"baseline/{n}/metrics.json", n, BASELINE)
        | read_metrics(RESULTS / f"evaluate/{n}/metrics.json", n, EVALUATE)
        for n in names
    }
    runs = read_runs(params)
    blocks = report_blocks(files, metrics, curves, classes, runs, dataclasses.asdict(params))
    title = f"Synthetic images of {short_name(params.dataset)}"
    write_bytes(RESULTS / "report.html", to_html(title, blocks).encode())
    write_bytes(RESULTS / "report.md", to_markdown(title, blocks, RESULTS).encode())
    print(f"render: {len(files)} figures in {RESULTS / 'figures'}, and {RESULTS / 'report.html'}")


def image_figures(params: Params, dataset: Dataset) -> dict[str, Figure]:
    """Draw the grids of images: of those that are evaluated, and of how they came about."""
    real = first_images(dataset, params.render.real_examples)
    names = dataset.class_names
    path = Path(params.evaluate.images)
    if not is_folder(path):
        published = published_statistics(params.dataset, dataset.mean, dataset.std)
        first = load_image_sets(path, params.evaluate.images_scale, names, *published)[0]
        return {"synthetic": image_grid(numpy_of(first.pixels_by_class), real, names)}
    last = params.condense.iterations
    pixels = {
        iteration: read_by_class(set_path(path, 0, iteration))
        for iteration in {0, *params.condense.snapshots, last}
    }
    evaluated = {i: pixels[i] for i in {*params.condense.snapshots, last}}
    return {
        "synthetic": image_grid(pixels[last], real, names),
        "start_and_end": start_and_end(pixels[0], pixels[last], last, names),
        "snapshots": snapshot_strip(evaluated, names),
    }


def read_by_class(path: Path) -> list[np.ndarray]:
    """Read a synthetic set's pixels: of each class (S, ch, h, w) in [0, 1]."""
    return numpy_of(read_synthetic_set(path).pixels_by_class)


def numpy_of(tensors: Iterable[Tensor]) -> list[np.ndarray]:
    """Return tensors as arrays."""
    return [tensor.numpy() for tensor in tensors]


def read_curves(names: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """Read each network's accuracies, with the seconds of condensation until then."""
    table = read_table(RESULTS / "condense/timing.csv", *TIMING)
    timing = table.set_index("iteration")["seconds"]
    curves = {}
    for name in names:
        curve = read_table(RESULTS / f"evaluate/{name}/curve.csv", *CURVE)
        seconds = curve["iteration"].map(timing).fillna(0.0)
        curve.insert(2, "seconds", seconds)
        curves[name] = curve
    return curves


def read_classes(path: Path, *columns: str) -> pd.DataFrame:
    """Read a table with the names of classes as they are: one may be called 7, another NA."""
    return read_table(
        path,
        "class",
        *columns,
        dtype={"class": str, "predicted": str},
        keep_default_na=False,
        na_values={"accuracy": ["", "nan"], "std": [""]},
    )


def read_table(path: Path, *columns: str, **options: Any) -> pd.DataFrame:
    """Read a table that has these columns and a row.

    Raises:
        ValueError: It is missing or damaged.
    """
    try:
        table: pd.DataFrame = pd.read_csv(path, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)})") from None
    if missing := sorted({*columns} - {*table.columns}):
        raise ValueError(f"{path}: has no column {', '.join(missing)}")
    if table.empty:
        raise ValueError(f"{path}: has no row")
    return table


def read_runs(params: Params) -> list[tuple[str, str, float, str]]:
    """Read how long the stages took: stage, what it did, seconds, device."""
    last = read_table(RESULTS / "condense/timing.csv", *TIMING).iloc[-1]
    did = f"{last['iteration']} iterations"
    runs = []
    if is_folder(params.evaluate.images):
        runs.append(("condense", did, float(last["seconds"]), str(last["device"])))
    for stage in ("evaluate", "baseline"):
        for name in params.evaluate.networks:
            path = RESULTS / stage / name / "timing.csv"
            row = read_table(path, "networks", "seconds", "device").iloc[0]
            did = f"{row['networks']} networks"
            runs.append((f"{stage}@{name}", did, float(row["seconds"]), str(row["device"])))
    return runs


def first_images(dataset: Dataset, num_images: int) -> np.ndarray:
    """Return the first images of each class: pixels (C, num_images, ch, h, w) in [0, 1].

    Where a class has fewer images than that, the places left are white.
    """
    pixels = np.ones((dataset.num_classes, num_images, *dataset.image_shape), np.float32)
    for index in range(dataset.num_classes):
        images = dataset.class_images(index)[:num_images]
        pixels[index, : len(images)] = images.numpy() / np.float32(255)
    return pixels


if __name__ == "__main__":
    run_stage(main)
