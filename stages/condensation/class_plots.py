"""What networks take for what, and how well they know each class, as matplotlib Figures.

A confusion table has the columns class, predicted (names, as text) and count (mean over networks);
a table of classes has the columns class (as text), accuracy (percent), std (percent; missing where
n is 1) and n (networks trained).

C = classes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from condensation.figure_style import COLOURS, INK, MARKERS, WIDTH, plain, style

MAX_ABREAST = 3
"""Panels in a row."""
MAX_NUMBERED = 12
"""Classes up to which each cell holds its number and each class its name."""

SHADES = LinearSegmentedColormap.from_list("white to blue", ["#FFFFFF", COLOURS[0], "#00304D"])
"""From pale to dark: it reads the same in grey."""


@style()
def confusion_panels(confusions: Mapping[str, pd.DataFrame], class_names: Sequence[str]) -> Figure:
    """Return a figure of the classes that each network takes real images for, in percent.

    A row is a true class and adds up to 100. Up to `MAX_NUMBERED` classes carry their numbers.

    Args:
        confusions: Network -> its confusion table.
        class_names: C names, in order.
    """
    abreast = min(MAX_ABREAST, len(confusions))
    rows = math.ceil(len(confusions) / abreast)
    side = WIDTH / max(abreast, 2)
    figure = Figure(figsize=(WIDTH, rows * (side + 0.35)), layout="constrained")
    panels = figure.subplots(rows, abreast, squeeze=False).flatten()
    for axes in panels[len(confusions) :]:
        axes.remove()
    for axes, (network, table) in zip(panels, confusions.items(), strict=False):
        square = table.pivot(index="class", columns="predicted", values="count")
        counts = square.loc[list(class_names), list(class_names)].to_numpy(float)
        percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1e-9)
        axes.imshow(percent, cmap=SHADES, vmin=0, vmax=100, interpolation="nearest")
        axes.set_title(network)
        axes.set_xlabel("taken for")
        axes.grid(False)
        few = len(class_names) <= MAX_NUMBERED
        ticks = range(0, len(class_names), 1 if few else math.ceil(len(class_names) / 10))
        names = [plain(class_names[i]) for i in ticks]
        long = max(len(name) for name in names) > 2
        axes.set_xticks(ticks, names, rotation=90 if long else 0, fontsize=8.5)
        axes.set_yticks(ticks, names, fontsize=8.5)
        if few:
            for (i, j), value in np.ndenumerate(percent):
                if value >= 0.5:
                    colour = "white" if value > 40 else INK
                    text = f"{value:.0f}"
                    axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7.5)
    panels[0].set_ylabel("true class")
    return figure


@style()
def class_accuracies(tables: Mapping[str, pd.DataFrame], class_names: Sequence[str]) -> Figure:
    """Return a figure of the accuracy by class: a mark for each network, with its spread.

    More than `MAX_NUMBERED` classes are sorted by the first network's accuracy and not named.

    Args:
        tables: Network -> its table of classes.
        class_names: C names, in order.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    first = next(iter(tables.values())).set_index("class")["accuracy"]
    few = len(class_names) <= MAX_NUMBERED
    order = list(class_names) if few else list(first.sort_values(kind="stable").index)
    places = np.arange(len(order))
    for index, (network, table) in enumerate(tables.items()):
        rows = table.set_index("class").loc[order]
        offset = 0.2 * (index - (len(tables) - 1) / 2) if few else 0.0
        axes.errorbar(
            places + offset,
            rows["accuracy"],
            yerr=rows["std"].fillna(0) if rows["std"].notna().any() else None,
            linestyle="none",
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markeredgecolor="white",
            markeredgewidth=0.6,
            markersize=7 if few else 4,
            capsize=3 if few else 0,
            linewidth=1.4,
            label=f"{network} (n = {rows['n'].iloc[0]:.0f})",
        )
    if few:
        long = max(len(name) for name in order) > 9
        shown = [plain(name) for name in order]
        axes.set_xticks(places, shown, rotation=30 if long else 0, ha="right" if long else "center")
        axes.set_xlabel("class")
        axes.grid(False, axis="x")
    else:
        axes.set_xlabel(f"{len(order)} classes, by accuracy of {next(iter(tables))}")
    axes.set_ylabel("accuracy (%)")
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        title="mean ± std",
        alignment="left",
        title_fontsize=9.5,
    )
    return figure
