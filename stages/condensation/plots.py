"""Curves and bars, as functions from plain tables to a matplotlib Figure.

A curve is the table of one network's accuracies: a row for each snapshot, with the columns
iteration, seconds (of condensation until then), accuracy (percent), std (percent; missing where n
is 1), n (networks trained) and ceiling (percent: the accuracy of that network trained on the whole
real training set).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from condensation.figure_style import COLOURS, GREY, INK, MARKERS, PALE, WIDTH, plain, style

MAX_CLASSES_NAMED = 14  # lines that can be told apart: 7 colours, solid and dashed


@style()
def loss_curve(
    loss: pd.DataFrame, loss_by_class: pd.DataFrame, class_names: Sequence[str]
) -> Figure:
    """Return a figure of the matching loss by iteration, in total and by class, on a log scale.

    Each class has a panel of its own, with the others pale behind it; more than
    `MAX_CLASSES_NAMED` classes share one panel without names. Curves are smoothed for the eye by a
    running mean, which the label then says; the total is also drawn as it is, pale. A loss of zero
    has no place on a log scale: that point is left out. Where no loss is above zero the scale is
    linear.

    Args:
        loss: The columns iteration and loss.
        loss_by_class: The columns iteration, class (its name, as text) and loss.
        class_names: The classes, in order.
    """
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(2, 3)))
    total = left.subplots()
    window = max(1, len(loss) // 25)
    if window > 1:
        _loss_line(total, loss, 1, color=COLOURS[0], alpha=0.35, linewidth=1.0)
    _loss_line(total, loss, window, color=COLOURS[0])
    total.set_title("all classes")
    total.set_ylabel("matching loss" + (f" (mean over {window} iterations)" if window > 1 else ""))
    _loss_scale(total)
    _iteration_axis(total)

    named = len(class_names) <= MAX_CLASSES_NAMED
    columns = math.ceil(len(class_names) / 2) if named and len(class_names) > 1 else 1
    rows = math.ceil(len(class_names) / columns) if named else 1
    grid = right.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    tables = {name: loss_by_class[loss_by_class["class"] == name] for name in class_names}
    panels = list(grid.flatten())
    for axes, shown in zip(panels, class_names, strict=False):
        for name, table in tables.items():
            if not named or name != shown:
                _loss_line(axes, table, window, color=GREY, alpha=0.3, linewidth=0.7)
        if named:
            _loss_line(axes, tables[shown], window, color=COLOURS[0], linewidth=1.6)
            axes.set_title(plain(shown), fontsize=9.5)
        else:
            axes.set_title(f"each of {len(class_names)} classes")
            break
    for axes in panels[len(class_names) :]:
        axes.set_axis_off()
    for axes in panels[: len(class_names)]:
        _loss_scale(axes)
        axes.xaxis.set_major_locator(
            MaxNLocator(2 if columns > 1 else 6, integer=True, steps=[1, 2, 5, 10])
        )
    right.supxlabel("iteration", fontsize=10)
    return figure


@style()
def accuracy_curve(curves: Mapping[str, pd.DataFrame], by: str = "iteration") -> Figure:
    """Return a figure of each network's accuracy in the course of condensation, with its ceiling.

    Args:
        curves: Network -> its curve.
        by: The column to draw it by: `iteration` or `seconds`.
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    handles = []
    for index, (network, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        curve = curve.sort_values(by)
        ceiling = curve["ceiling"].iloc[-1]
        axes.axhline(ceiling, color=colour, linestyle=":", linewidth=1.8)
        marker = MARKERS[index % len(MARKERS)]
        # In grey, the ceiling's mark says whose it is; ceilings lie close together, so their marks
        # stand at places of their own.
        axes.plot(
            [0.9 - 0.1 * (index % len(MARKERS))],
            [ceiling],
            transform=axes.get_yaxis_transform(),
            color=colour,
            marker=marker,
            markerfacecolor="white",
            markersize=6,
            clip_on=False,
        )
        handles += axes.plot(
            curve[by],
            curve["accuracy"],
            color=colour,
            marker=marker,
            markeredgecolor="white",
            markeredgewidth=0.6,
            markersize=7,
            label=f"{network}\n{_counts(curve['n'])}",
            zorder=3,
            clip_on=False,
        )
        spread = curve.dropna(subset=["std"])
        axes.errorbar(
            spread[by],
            spread["accuracy"],
            yerr=spread["std"],
            linestyle="none",
            color=colour,
            capsize=4,
            linewidth=1.6,
            zorder=2.5,
        )
    handles.append(
        Line2D([], [], color=GREY, linestyle=":", linewidth=1.8, label="ceiling:\nall real images")
    )
    axes.set_ylabel("accuracy (%)")
    axes.margins(x=0.03)
    if by == "iteration":
        _iteration_axis(axes)
    else:
        axes.set_xlabel("seconds of condensation")
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        labelspacing=0.9,
        title="mean ± std over\nn fresh networks",
        title_fontsize=9.5,
        alignment="left",
    )
    return figure


@style()
def retained_bars(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Return a figure of each network's accuracy on the final images as a part of its ceiling.

    Args:
        curves: Network -> its curve, of which the last iteration is drawn.
    """
    figure = Figure(figsize=(WIDTH, 0.75 + 0.75 * len(curves)), layout="constrained")
    axes = figure.subplots()
    for index, curve in enumerate(curves.values()):
        final = curve.sort_values("iteration").iloc[-1]
        accuracy, ceiling, std = final["accuracy"], final["ceiling"], final["std"]
        known = bool(pd.notna(std))
        axes.barh(index, ceiling, height=0.66, color=PALE, zorder=2)
        axes.barh(index, accuracy, height=0.66, color=COLOURS[0], zorder=2.1)
        if known:
            axes.errorbar(accuracy, index, xerr=std, color=INK, capsize=4, linewidth=1.4, zorder=3)
        score = f"{accuracy:.1f} ± {std:.1f} %" if known else f"{accuracy:.1f} %"
        inside = accuracy > 40  # a shorter bar has no room for the numbers
        axes.text(
            2 if inside else accuracy + (std if known else 0) + 2,
            index,
            f"{score}   (n = {final['n']:.0f})",
            color="white" if inside else INK,
            va="center",
            zorder=4,
        )
        if ceiling > 0:  # of nothing, no part is reached
            retained = f"{100 * accuracy / ceiling:.1f} % retained"
            axes.text(102, index, retained, fontweight="bold", va="bottom")
        axes.text(102, index, f"ceiling {ceiling:.1f} %", color=GREY, va="top", fontsize=9.5)
    axes.set_yticks(range(len(curves)), list(curves))
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy (%)")
    return figure


def _loss_line(axes: Axes, rows: pd.DataFrame, window: int, **appearance: Any) -> None:
    """Draw a running mean of the loss over `window` iterations."""
    smooth = rows["loss"].rolling(window, center=True, min_periods=1).mean()
    marker = "o" if len(rows) == 1 else ""  # a line through one point is invisible
    axes.plot(rows["iteration"], smooth, marker=marker, **appearance)


def _loss_scale(axes: Axes) -> None:
    """Make the y axis logarithmic if anything is above zero, with round numbers within a decade."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    positive = values[values > 0]
    if len(positive) == 0:
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log", nonpositive="mask")
    decades = math.log10(positive.max() / positive.min())
    if decades < 2:
        subs = (1, 2, 5) if decades > 1 else (1, 1.5, 2, 3, 5, 7)
        few = MaxNLocator(6, steps=[1, 2, 5, 10])
        axes.yaxis.set_major_locator(LogLocator(subs=subs) if decades > 0.5 else few)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _iteration_axis(axes: Axes) -> None:
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def _counts(counts: pd.Series) -> str:
    """Return how many networks are behind the points of a curve: the last one often has more."""
    *before, last = (int(n) for n in counts)
    if not before or set(before) == {last}:
        return f"n = {last}"
    low, high = min(before), max(before)
    return f"n = {low if low == high else f'{low} to {high}'} (last: {last})"
