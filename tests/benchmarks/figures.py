"""Draw what was measured, from `results/benchmarks/*.json` into PNG files beside them.

A figure for each file. Of the benchmark: seconds of a step and peak memory against the images per
class, the classes, the real batch, the image size and the number of sets. Of the accuracies
(`accuracy-*.json`): their curves. What is not measured is left out.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "stages"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from benchmarks.cases import GROWTH, grown
from benchmarks.measure import Record
from benchmarks.tables import beyond_usual
from condensation.figure_style import COLOURS, MARKERS, WIDTH, save, style

RESULTS = Path(__file__).resolve().parents[2] / "results/benchmarks"
DPI = 150
LABELS = {
    "ipc": "synthetic images a class",
    "classes": "classes",
    "real": "real images a class",
    "size": "image size (pixels)",
    "sets": "sets",
}
USUAL = (1, 24)
"""Images a class, synthetic and real in a batch, of accuracies whose file does not name them."""
LINES = ("solid", (0, (4, 2)), (0, (1, 1.2)))


def growth(written: Record) -> Figure:
    """Return the figure of one file: a column for each size, seconds above, memory below."""
    with style():
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        axes = figure.subplots(2, len(GROWTH), sharey="row", sharex="col", squeeze=False)
        for column, key in enumerate(GROWTH):
            for number, side in enumerate(("reference", "engine")):
                look = _look(number, side)
                _draw_seconds(axes[0, column], written, key, side, look)
                _draw_memory(axes[1, column], written, key, side, look)
            axes[1, column].set_xlabel(LABELS[key])
            axes[0, column].set_xscale("log", base=2)
            axes[1, column].set_xticks(GROWTH[key])
            axes[1, column].xaxis.set_major_formatter(ScalarFormatter())
            axes[1, column].xaxis.set_minor_formatter(NullFormatter())
        for row, label in enumerate(("seconds a step", "peak memory (MiB)")):
            axes[row, 0].set_yscale("log")
            axes[row, 0].set_ylabel(label)
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper right", ncols=2)
        _entitle(figure, f"Cost of an image step of order 1; {written['machine']['device']}")
    return figure


def curves(written: Record) -> Figure:
    """Return the accuracy of each way against the iterations: means, bands of one sd over seeds."""
    with style():
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        number_of_seeds = 0
        for number, (name, found) in enumerate(written["ways"].items()):
            if found is None:
                continue
            iterations, mean = found["iterations"], np.array(found["mean"])
            number_of_seeds = found["n"]
            axes.plot(iterations, mean, **_look(number, name), zorder=3)
            if None not in found["sd"]:
                sd, shade = np.array(found["sd"]), COLOURS[number]
                axes.fill_between(
                    iterations, mean - sd, mean + sd, color=shade, alpha=0.16, linewidth=0
                )
            axes.set_xticks(iterations)
        axes.set_xlim(left=0)
        axes.set_xlabel("iterations" + _sizes(written["settings"]))
        axes.set_ylabel("test accuracy (%)")
        axes.legend(loc="lower right")
        _entitle(
            figure,
            f"Accuracy by the way the images are made; mean ± sd of {number_of_seeds} seeds; "
            f"{written['machine']['device']}",
        )
    return figure


def _sizes(used: Record) -> str:
    # Of a file with other numbers of images than the usual ones.
    ipc, real = used["ipc"], used["real_per_class"]
    beyond = f", with {beyond}" if (beyond := beyond_usual(used)) else ""
    usual = (ipc, real) == USUAL and not beyond
    return "" if usual else f" ({ipc} images a class from {real} real ones{beyond})"


def _look(number: int, label: str) -> dict[str, Any]:
    return {
        "color": COLOURS[number],
        "marker": MARKERS[number],
        "linestyle": LINES[number],
        "label": label,
    }


def _entitle(figure: Figure, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")


def measured(written: Record, key: str, side: str) -> list[tuple[int, Record]]:
    """Return each size that is measured, and what was found there."""
    pairs = [
        (size, written["cases"].get(case.name))
        for size, case in zip(GROWTH[key], grown(key), strict=True)
    ]
    return [
        (size, case["sides"][side]) for size, case in pairs if case is not None and "sides" in case
    ]


def _draw_seconds(axes: Axes, written: Record, key: str, side: str, look: Record) -> None:
    points = [(size, found["seconds"]) for size, found in measured(written, key, side)]
    middle = [spent["median"] for _, spent in points]
    below = [spent["median"] - spent["lower_quartile"] for _, spent in points]
    above = [spent["upper_quartile"] - spent["median"] for _, spent in points]
    axes.errorbar([size for size, _ in points], middle, (below, above), capsize=2, **look)


def _draw_memory(axes: Axes, written: Record, key: str, side: str, look: Record) -> None:
    points = [(size, found["peak_bytes"] / 2**20) for size, found in measured(written, key, side)]
    axes.plot(*zip(*points, strict=True), **look) if points else axes.plot([], [], **look)


def main() -> None:
    """Draw every file."""
    for path in sorted(RESULTS.glob("*.json")):
        written = json.loads(path.read_text())
        draw = curves if "ways" in written else growth
        save(draw(written), path.with_suffix(".png"), DPI)
        print(path.with_suffix(".png").relative_to(RESULTS.parents[1]))


if __name__ == "__main__":
    main()
