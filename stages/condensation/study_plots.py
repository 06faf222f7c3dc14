"""The figures of a study, as functions from its tables to a matplotlib Figure.

A facet is a title and what is drawn under it: the label of each arm -> its table, with the columns
iteration, seconds, accuracy (percent), half_width (of the confidence interval) and loss, and, where
there is one, published (an accuracy).

Shapes: C = classes, image = (ch, h, w).
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from condensation.class_plots import SHADES
from condensation.figure_style import COLOURS, GREY, INK, MARKERS, WIDTH, style

Facets = Mapping[str, Mapping[str, pd.DataFrame]]

FEWEST_TICKS = 4
LEAST_ERROR = 0.1
"""In percent: what is less is drawn as this."""
MAX_ABREAST = 3
"""Facets in a row."""
MOST_LETTERS = 55
"""Of the arms' names in a row, for facets to be abreast that have them beside each."""
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.2, 1, 1.2)))
"""Of further arms, after every colour has been used once."""


@style()
def accuracy_curves(facets: Facets, by: str) -> Figure:
    """Return a figure of the accuracy of every arm, with the band of its confidence interval.

    The axis of iterations is that of the square root, as images change most at the beginning; that
    of accuracies is that of the logarithm of the error, as 92 and 96 % are as far apart as 60 and
    80. A published accuracy is a dotted line.

    Args:
        facets: Title -> label -> table.
        by: `iteration` or `seconds`.
    """
    figure, panels = _facets(facets, height=2.9)
    for axes, tables in zip(panels, facets.values(), strict=True):
        for label, table in tables.items():
            look = _look(label, facets)
            axes.plot(table[by], table["accuracy"], **look, markersize=4.5, zorder=3)
            if "published" in table:
                axes.axhline(table["published"].iloc[0], color=look["color"], linestyle=":")
            low = table["accuracy"] - table["half_width"]
            high = table["accuracy"] + table["half_width"]
            if table["half_width"].notna().any():
                axes.fill_between(
                    table[by], low, high, color=look["color"], alpha=0.16, linewidth=0
                )
        axes.set_yscale("function", functions=(_log_error, _of_log_error))
        axes.yaxis.set_major_locator(FixedLocator(_round_apart(*axes.get_ylim())))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xscale("function", functions=(_root, np.square))
        if by == "iteration":
            shown = sorted({*pd.concat([*tables.values()])["iteration"]})
            axes.xaxis.set_major_locator(FixedLocator(_apart(shown)))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=3))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlim(left=0)
    _label(panels, "seconds" if by == "seconds" else "iteration")
    published = any("published" in table for part in facets.values() for table in part.values())
    dotted = ";\ndotted: published" if published else ""
    _legend(figure, facets, f"mean over the sets;\nband: 95 % interval{dotted}")
    return figure


@style()
def final_accuracies(facets: Facets) -> Figure:
    """Return a figure of the first and the last accuracy of every arm, with their intervals."""
    most = max(len(tables) for tables in facets.values())
    alike = len({tuple(tables) for tables in facets.values()}) == 1
    # The arms' names take of the width where they are written in each panel.
    letters = 22 if alike else 17
    height = max(1.9, 0.7 + 0.27 * most)
    longest = [max(map(len, tables)) for tables in facets.values()]
    of_columns = [max(longest[i::MAX_ABREAST], default=0) for i in range(MAX_ABREAST)]
    abreast = MAX_ABREAST if alike or sum(of_columns) <= MOST_LETTERS else 1
    figure, panels = _facets(facets, height, sharey=alike, letters=letters, most=abreast)
    for axes, tables in zip(panels, facets.values(), strict=True):
        for place, table in enumerate(tables.values()):
            ordered = table.sort_values("iteration")
            for row, filled in ((ordered.iloc[0], False), (ordered.iloc[-1], True)):
                if filled or row["iteration"] < ordered["iteration"].iloc[-1]:
                    width = row["half_width"]
                    axes.errorbar(
                        row["accuracy"],
                        place,
                        xerr=None if math.isnan(width) else width,
                        color=COLOURS[0] if filled else GREY,
                        marker="o",
                        markerfacecolor=None if filled else "white",
                        markersize=6,
                        capsize=3,
                        linewidth=1.4,
                        linestyle="none",
                    )
        axes.set_yticks(range(len(tables)), [*tables])
        axes.set_ylim(len(tables) - 0.4, -0.6)
    for axes in panels:
        axes.set_xlabel("accuracy (%)")
    look: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 6}
    handles = [
        Line2D([], [], color=COLOURS[0], label="last iteration", **look),
        Line2D([], [], color=GREY, markerfacecolor="white", label="iteration 0", **look),
    ]
    figure.legend(
        handles=handles,
        loc="outside lower right",
        ncols=2,
        title="mean over the sets, 95 % interval",
        title_fontsize=9.5,
    )
    return figure


@style()
def losses(facets: Facets) -> Figure:
    """Return a figure of the matching loss of every arm.

    Args:
        facets: Title -> label -> table with the columns iteration and loss (of all classes, mean
            over the sets and over the image steps of the iteration).
    """
    figure, panels = _facets(facets, height=2.7)
    for axes, tables in zip(panels, facets.values(), strict=True):
        for label, table in tables.items():
            look = {**_look(label, facets), "marker": ""}
            axes.plot(table["iteration"], table["loss"], **look, linewidth=1.1)
        axes.set_yscale("log", nonpositive="mask")
        low, high = axes.get_ylim()
        # Of a narrow range those of the logarithm would be one or none.
        narrow = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
        several = LogLocator(subs=(1, 2, 5)) if high > 5 * low else narrow
        axes.yaxis.set_major_locator(several)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    _label(panels, "iteration", "matching loss, all classes")
    _legend(figure, facets, "mean over the sets")
    return figure


@style()
def curvature_terms(facets: Facets) -> Figure:
    """Return a figure of the curvature term's image gradient beside that of the gradient term.

    Args:
        facets: Title -> label -> table with the columns iteration, ratio (of their lengths, before
            the weight) and cosine (between them).
    """
    figure = Figure(figsize=(WIDTH, 2.5 * len(facets) + 0.3), layout="constrained")
    panels = figure.subplots(len(facets), 2, squeeze=False)
    for row, (title, tables) in zip(panels, facets.items(), strict=True):
        for axes, name in zip(row, ("ratio", "cosine"), strict=True):
            for label, table in tables.items():
                window = max(1, len(table) // 20)
                smooth = table[name].rolling(window, center=True, min_periods=1).mean()
                look = {**_look(label, facets), "marker": ""}
                axes.plot(table["iteration"], smooth, **look)
            axes.set_title(textwrap.fill(f"{title}: {name}", 40), fontsize=9.5)
        row[0].set_yscale("log", nonpositive="mask")
        row[0].yaxis.set_minor_formatter(NullFormatter())
        row[1].axhline(0, color=GREY, linewidth=0.8)
        row[1].set_ylim(-1.05, 1.05)
    for axes in panels[-1]:
        axes.set_xlabel("iteration")
    _legend(figure, facets, "of the curvature term's\nimage gradient to the\ngradient term's")
    return figure


@style()
def arms_images(images: Mapping[str, np.ndarray], times: Sequence[str]) -> Figure:
    """Return a figure of the images of every arm: a row each, and a strip of classes each time.

    Args:
        images: Label -> (times, C, ch, h, w) uint8.
        times: Titles of the strips.
    """
    first = next(iter(images.values()))
    strips, classes = first.shape[:2]
    room = 0.12 + 0.085 * max(len(label) for label in images)
    tile = (WIDTH - room - 0.12 * strips) / (strips * classes)
    height = 0.3 + len(images) * (tile + 0.05)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    for place, (label, of_arm) in enumerate(images.items()):
        top = 0.26 + place * (tile + 0.05)
        axes.text(room - 0.1, top + tile / 2, label, ha="right", va="center", fontsize=9)
        for strip, row in enumerate(of_arm):
            left = room + strip * (classes * tile + 0.12)
            if place == 0:
                axes.text(left, 0.2, times[strip], fontsize=9, fontweight="bold", va="bottom")
            sheet = row.transpose(2, 0, 3, 1).reshape(row.shape[2], -1, row.shape[1])
            axes.imshow(
                sheet[..., 0] if row.shape[1] == 1 else sheet,
                cmap="gray",
                vmin=0,
                vmax=255,
                extent=(left, left + classes * tile, top + tile, top),
                aspect="auto",
                interpolation="nearest",
            )
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    return figure


@style()
def transfer(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Return a figure of how images condensed on one network train another, as heat maps.

    Args:
        tables: Title -> a row for each pair of networks, with the columns network (condensed on),
            evaluated (on), accuracy, std.
    """
    shown = pd.concat([*tables.values()])
    low, high = math.floor(shown["accuracy"].min() / 5) * 5, 100
    figure = Figure(figsize=(WIDTH, 0.9 + 0.8 * shown["network"].nunique()), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        rows, columns = ([*dict.fromkeys(table[name])] for name in ("network", "evaluated"))
        values = table.pivot(index="network", columns="evaluated").reindex(rows)
        accuracy = values["accuracy"][columns].to_numpy(float)
        axes.imshow(accuracy, cmap=SHADES, vmin=low, vmax=high, aspect="auto")
        for (i, j), value in np.ndenumerate(accuracy):
            if not math.isnan(value):
                std = values["std"][columns].to_numpy(float)[i, j]
                dark = (value - low) / (high - low) > 0.4
                axes.text(
                    j,
                    i,
                    f"{value:.1f}" + ("" if math.isnan(std) else f"\n± {std:.1f}"),
                    ha="center",
                    va="center",
                    color="white" if dark else INK,
                )
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel("evaluated on")
        axes.set_title(title)
        axes.grid(False)
    panels[0].set_ylabel("condensed on")
    return figure


def _root(values: np.ndarray) -> np.ndarray:
    roots: np.ndarray = np.sqrt(np.maximum(values, 0))
    return roots


def _log_error(accuracies: np.ndarray) -> np.ndarray:
    logarithms: np.ndarray = -np.log(np.maximum(100 - accuracies, LEAST_ERROR))
    return logarithms


def _of_log_error(logarithms: np.ndarray) -> np.ndarray:
    accuracies: np.ndarray = 100 - np.exp(-logarithms)
    return accuracies


def _round_apart(low: float, high: float) -> list[float]:
    # Accuracies whose numbers do not run into one another, the roundest, and few.
    top = 100 - LEAST_ERROR
    low, high = max(low, 0), min(high, top)
    room = 0.1 * (_log_error(np.array(high)) - _log_error(np.array(low)))
    kept: list[float] = []
    for step in (50, 10, 5, 2, 1, 0.5, 0.1):
        if len(kept) >= FEWEST_TICKS and step < 5:
            break
        for accuracy in np.arange(math.ceil(low / step) * step, high, step).tolist():
            ends = _log_error(np.array([accuracy, *kept]))
            if (np.abs(ends[1:] - ends[0]) > room).all():
                kept.append(round(accuracy, 1))
    return sorted(kept)


def _apart(iterations: Sequence[int]) -> list[int]:
    # Those of the iterations whose numbers do not run into one another.
    kept = [iterations[-1]]
    for iteration in reversed(iterations[:-1]):
        digits = (len(str(iteration)) + len(str(kept[-1]))) / 2
        room = 0.05 * digits + 0.04  # of the axis, three panels abreast
        if math.sqrt(kept[-1]) - math.sqrt(iteration) > room * math.sqrt(iterations[-1]):
            kept.append(iteration)
    return kept[::-1]


def _facets(
    facets: Facets,
    height: float,
    sharey: bool = False,
    letters: int = 20,
    most: int = MAX_ABREAST,
) -> tuple[Figure, list[Axes]]:
    # Three abreast, a title has room for so many letters in a line.
    abreast = min(most, len(facets))
    rows = math.ceil(len(facets) / abreast)
    figure = Figure(figsize=(WIDTH, rows * height + 0.2), layout="constrained")
    grid = figure.subplots(rows, abreast, squeeze=False, sharey=sharey)
    panels = list(grid.flatten())
    for axes in panels[len(facets) :]:
        axes.remove()
    panels = panels[: len(facets)]
    for axes, title in zip(panels, facets, strict=True):
        short = textwrap.fill(title, letters) if abreast == MAX_ABREAST else title
        axes.set_title(short, fontsize=9.5)
    return figure, panels


def _label(panels: list[Axes], below: str, left: str = "accuracy (%)") -> None:
    for axes in panels:
        axes.set_xlabel(below)
    panels[0].set_ylabel(left)
    for axes in panels[MAX_ABREAST::MAX_ABREAST]:
        axes.set_ylabel(left)


def _labels(facets: Facets) -> list[str]:
    return list(dict.fromkeys(label for tables in facets.values() for label in tables))


def _look(label: str, facets: Facets) -> dict[str, Any]:
    # The same for an arm in every facet; in grey, its mark tells it from the others.
    index = _labels(facets).index(label)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def _legend(figure: Figure, facets: Facets, title: str) -> None:
    # The figure becomes as high as the names need.
    labels = _labels(facets)
    figure.set_figheight(max(figure.get_figheight(), 0.7 + 0.26 * len(labels)))
    handles = [Line2D([], [], **_look(label, facets), label=label) for label in labels]
    figure.legend(
        handles=handles,
        loc="outside right upper",
        title=title,
        title_fontsize=9,
        alignment="left",
        handlelength=2.6,
    )
