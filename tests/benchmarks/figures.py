"""Draw how time and memory grow, from `results/benchmarks/*.json` into PNG files beside them.

A figure for each file: seconds of a step and peak memory against the images per class, the classes,
the real batch, the image size and the number of sets. What is not measured is left out.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "stages"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from benchmarks.cases import GROWTH, grown
from benchmarks.measure import Record
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
LINES = ("solid", (0, (4, 2)))


def growth(written: Record) -> Figure:
    """Return the figure of one file: a column for each size, seconds above, memory below."""
    with style():
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        axes = figure.subplots(2, len(GROWTH), sharey="row", sharex="col", squeeze=False)
        for column, key in enumerate(GROWTH):
            for number, side in enumerate(("reference", "engine")):
                look = {
                    "color": COLOURS[number],
                    "marker": MARKERS[number],
                    "linestyle": LINES[number],
                    "label": side,
                }
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
        figure.suptitle(
            f"Cost of an image step of order 1; {written['machine']['device']}",
            x=0.01,
            ha="left",
            fontsize=10.5,
            fontweight="bold",
        )
    return figure


def measured(written: Record, key: str, side: str) -> list[tuple[int, Record]]:
    """Return each size that is measured, and what was found there."""
    pairs = [
        (size, written["cases"].get(case.name))
        for size, case in zip(GROWTH[key], grown(key), strict=True)
    ]
    return [(size, case["sides"][side]) for size, case in pairs if case is not None]


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
        save(growth(json.loads(path.read_text())), path.with_suffix(".png"), DPI)
        print(path.with_suffix(".png").relative_to(RESULTS.parents[1]))


if __name__ == "__main__":
    main()
