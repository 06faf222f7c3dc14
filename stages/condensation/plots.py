"""The figures, as functions from plain tables and arrays to a matplotlib Figure.

Nothing here reads a file or touches pyplot's list of open figures. A README shows about 900 pixels
of width, so figures are 9 inches wide at most: 10 points are then about 14 pixels.

Shapes: C = classes, S = synthetic images per class, R = real examples per class, ch = channels,
h, w = height and width. Pixels are values in [0, 1].

A curve is the table of one network's accuracies: a row for each snapshot, with the columns
iteration, accuracy (percent), std (percent; missing where n is 1), n (networks trained) and ceiling
(percent: the accuracy of that network trained on the whole real training set).
"""

import io
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from condensation.files import write_bytes

WIDTH = 9.0  # inches
MAX_SYNTHETIC_SHOWN = 10  # synthetic images of each class in the grid
MAX_CLASSES_ABREAST = 20  # columns of classes; more classes go into further bands below
MAX_CLASSES_NAMED = 14  # lines that can be told apart: 7 colours, solid and dashed

# Okabe & Ito's palette, which the colour-blind can tell apart; its yellow is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#222222"
GREY = "#6E6E6E"
PALE = "#E3E3E3"

# Grids of images, in inches.
EDGE, GUTTER, BAND_GAP, MAX_TILE = 0.06, 0.05, 0.22, 0.9
LABEL: dict[str, Any] = {"fontsize": 10, "fontweight": "bold"}


@contextmanager
def _style() -> Generator[None]:
    """The one place where the look is set. Own settings of the user (matplotlibrc) are left out."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            seaborn.axes_style("whitegrid")
            | {
                "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: same bytes everywhere
                "font.size": 10,
                "axes.labelsize": 10,
                "axes.titlesize": 10.5,
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.edgecolor": GREY,
                "axes.grid.which": "major",
                "grid.color": PALE,
                "grid.linewidth": 0.8,
                "figure.constrained_layout.w_pad": 0.08,
                "lines.linewidth": 1.8,
                "lines.markersize": 5.5,
                "legend.frameon": False,
                "legend.fontsize": 9.5,
                "text.color": INK,
                "axes.labelcolor": INK,
                "xtick.color": INK,
                "ytick.color": INK,
                "xtick.labelsize": 9.5,
                "ytick.labelsize": 9.5,
            }
        )
        yield


@_style()
def image_grid(
    synthetic_pixels: np.ndarray, real_pixels: np.ndarray, class_names: Sequence[str]
) -> Figure:
    """Return a figure of the synthetic images of each class beside real ones.

    Classes are columns where that makes the figure wider than tall, and rows otherwise. At most
    `MAX_SYNTHETIC_SHOWN` synthetic images of a class are drawn; the label then says so.

    Args:
        synthetic_pixels: (C, S, ch, h, w), ch 1 (grey) or 3 (RGB).
        real_pixels: (C, R, ch, h, w).
        class_names: C names.
    """
    num_classes, ipc = synthetic_pixels.shape[:2]
    shown = synthetic_pixels[:, :MAX_SYNTHETIC_SHOWN]
    label = "synthetic" if shown.shape[1] == ipc else f"synthetic ({shown.shape[1]} of {ipc})"
    images_per_class = shown.shape[1] + real_pixels.shape[1]
    bands = math.ceil(num_classes / MAX_CLASSES_ABREAST)
    return _class_grid(
        [(label, shown), ("real", real_pixels)],
        class_names,
        group_gap=0.16,
        classes_as_rows=images_per_class * bands > num_classes / bands,
    )


@_style()
def snapshot_strip(snapshots: Mapping[int, np.ndarray], class_names: Sequence[str]) -> Figure:
    """Return a figure of how the first image of each class changes: a row for each snapshot.

    Args:
        snapshots: Iteration -> pixels (C, S, ch, h, w), ch 1 (grey) or 3 (RGB).
        class_names: C names.
    """
    groups = [(f"iteration {number}", snapshots[number][:, :1]) for number in sorted(snapshots)]
    return _class_grid(groups, class_names, group_gap=0.0, classes_as_rows=False)


@_style()
def loss_curve(
    loss: pd.DataFrame, loss_by_class: pd.DataFrame, class_names: Sequence[str]
) -> Figure:
    """Return a figure of the matching loss by iteration, in total and by class, on a log scale.

    Long curves are smoothed for the eye by a running mean, which the title then says; the total is
    also drawn as it is, pale. A loss of zero has no place on a log scale: that point is left out.
    Where no loss is above zero the scale is linear.

    Args:
        loss: The columns iteration and loss.
        loss_by_class: The columns iteration, class (its name, as text) and loss.
        class_names: The classes, in order.
    """
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    total, by_class = figure.subplots(1, 2)
    window = max(1, len(loss) // 50)
    if window > 1:
        _loss_line(total, loss, 1, color=COLOURS[0], alpha=0.25, linewidth=1.0)
    _loss_line(total, loss, window, color=COLOURS[0])
    named = len(class_names) <= MAX_CLASSES_NAMED
    for number, name in enumerate(class_names):
        colour = COLOURS[number % len(COLOURS)] if named else COLOURS[0]
        _loss_line(
            by_class,
            loss_by_class[loss_by_class["class"] == name],
            window,
            color=colour,
            linestyle="-" if number < len(COLOURS) or not named else (0, (4, 2)),
            linewidth=1.4,
            alpha=1.0 if named else 0.3,
            label=name,
        )
    total.set_title("all classes")
    by_class.set_title("by class" if named else f"each of {len(class_names)} classes")
    total.set_ylabel("matching loss")
    if window > 1:
        total.set_ylabel(f"matching loss (mean over {window} iterations)")
    for axes in (total, by_class):
        _loss_scale(axes)
        _iteration_axis(axes)
    if named:
        by_class.legend(
            loc="upper left", bbox_to_anchor=(1.0, 1.03), borderaxespad=0, handlelength=2.4
        )
    return figure


@_style()
def accuracy_curve(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Return a figure of each network's accuracy by iteration of condensation, with its ceiling.

    Args:
        curves: Network -> its curve.
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    handles = []
    for index, (network, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        curve = curve.sort_values("iteration")
        axes.axhline(curve["ceiling"].iloc[-1], color=colour, linestyle=":", linewidth=1.8)
        handles += axes.plot(
            curve["iteration"],
            curve["accuracy"],
            color=colour,
            marker=MARKERS[index % len(MARKERS)],
            markeredgecolor="white",
            markeredgewidth=0.6,
            markersize=7,
            label=f"{network}\n{_counts(curve['n'])}",
            zorder=3,
            clip_on=False,
        )
        spread = curve.dropna(subset=["std"])
        axes.errorbar(
            spread["iteration"],
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
    _iteration_axis(axes)
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


@_style()
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
        axes.text(
            102,
            index,
            f"{100 * accuracy / ceiling:.1f} % retained",
            fontweight="bold",
            va="bottom",
        )
        axes.text(102, index, f"ceiling {ceiling:.1f} %", color=GREY, va="top", fontsize=9.5)
    axes.set_yticks(range(len(curves)), list(curves))
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy (%)")
    return figure


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as PNG, atomically; the same figure gives the same bytes.

    Args:
        figure: What one of the functions above returned.
        path: Where to.
        dpi: Dots per inch.

    Raises:
        OSError: The file cannot be written.
    """
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


class _Measures(NamedTuple):
    """Sizes of a grid of images, in inches unless said otherwise."""

    abreast: int  # classes in a band
    bands: int
    tile: float  # width of an image
    labels: float  # room beside the images for the groups' labels
    names: float  # room beside the images for the classes' names
    name_size: float  # points
    name_rotation: int  # degrees


def _measure(
    labels: Sequence[str],
    class_names: Sequence[str],
    images_per_class: int,
    gaps: float,
    classes_as_rows: bool,
) -> _Measures:
    """Choose the number of bands and the sizes, so that the grid is as wide as a figure may be."""
    free = WIDTH - 2 * EDGE
    if classes_as_rows:
        # As few bands as keep the figure from being more than twice as tall as wide.
        bands = max(1, round(math.sqrt(len(class_names) / images_per_class / 2)))
        names = max(_text_width(name, 9.5) for name in class_names) + 0.12
        free -= bands * (names + gaps) + (bands - 1) * BAND_GAP
        tile = min(MAX_TILE, free / (bands * images_per_class) - GUTTER)
        return _Measures(
            math.ceil(len(class_names) / bands), bands, tile, 0.26, names, 9.5, name_rotation=0
        )
    bands = math.ceil(len(class_names) / MAX_CLASSES_ABREAST)
    abreast = math.ceil(len(class_names) / bands)
    room = max(_text_width(label, 10, bold=True) for label in labels) + 0.12
    tile = min(MAX_TILE, (free - room) / abreast - GUTTER)
    longest = max(_text_width(name, 1) for name in class_names)
    if tile / longest >= 7.5:
        return _Measures(abreast, bands, tile, room, 0.24, min(10, tile / longest), 0)
    return _Measures(abreast, bands, tile, room, longest * 7.5 + 0.1, 7.5, name_rotation=90)


def _class_grid(
    groups: Sequence[tuple[str, np.ndarray]],
    class_names: Sequence[str],
    *,
    group_gap: float,
    classes_as_rows: bool,
) -> Figure:
    """Return a figure of labelled groups of images (C, M, ch, h, w), each with an M of its own.

    Everything is placed in inches, on one set of axes that covers the figure. `u` runs along the
    classes and `v` along the images of a class: (u, v) is (x, y) with classes as columns and (y, x)
    with classes as rows. More classes than fit abreast go into further bands along `v`.
    """
    images_per_class = sum(images.shape[1] for _, images in groups)
    gaps = group_gap * (len(groups) - 1)
    labels = [label for label, _ in groups]
    sizes = _measure(labels, class_names, images_per_class, gaps, classes_as_rows)
    tile_height = sizes.tile * groups[0][1].shape[-2] / groups[0][1].shape[-1]
    tile_u, tile_v = (sizes.tile, tile_height)[:: -1 if classes_as_rows else 1]
    band_v = sizes.names + images_per_class * (tile_v + GUTTER) - GUTTER + gaps
    size_u = 2 * EDGE + sizes.labels + sizes.abreast * (tile_u + GUTTER) - GUTTER
    size_v = 2 * EDGE + sizes.bands * (band_v + BAND_GAP) - BAND_GAP

    figure = Figure(figsize=(size_v, size_u) if classes_as_rows else (size_u, size_v))
    axes = figure.add_axes((0, 0, 1, 1))
    for index, name in enumerate(class_names):
        band, place = divmod(index, sizes.abreast)
        u = EDGE + sizes.labels + place * (tile_u + GUTTER)
        v = EDGE + band * (band_v + BAND_GAP) + sizes.names
        text: dict[str, Any] = {"fontsize": sizes.name_size, "rotation": sizes.name_rotation}
        if classes_as_rows:
            axes.text(v - 0.08, u + tile_u / 2, name, ha="right", va="center", **text)
        else:
            axes.text(u + tile_u / 2, v - 0.06, name, ha="center", va="bottom", **text)
        for label, images in groups:
            if place == 0:
                span = images.shape[1] * (tile_v + GUTTER) - GUTTER
                if not classes_as_rows:
                    axes.text(u - 0.12, v + span / 2, label, ha="right", va="center", **LABEL)
                elif _text_width(label, 10, bold=True) <= span:
                    axes.text(v, u - 0.06, label, ha="left", va="bottom", **LABEL)
                else:  # wider than its images: it starts further left, above the names
                    axes.text(v + span, u - 0.06, label, ha="right", va="bottom", **LABEL)
            for image in images[index]:
                x, y = (v, u) if classes_as_rows else (u, v)
                _draw_image(axes, image, x, y, sizes.tile, tile_height)
                v += tile_v + GUTTER
            v += group_gap
    # Drawing an image sets limits: these come last.
    axes.set_axis_off()
    axes.set_xlim(0, figure.get_figwidth())
    axes.set_ylim(figure.get_figheight(), 0)
    return figure


def _draw_image(
    axes: Axes, image: np.ndarray, x: float, y: float, width: float, height: float
) -> None:
    """Draw an image (ch, h, w) with its top left corner at (x, y)."""
    axes.imshow(
        image[0] if len(image) == 1 else image.transpose(1, 2, 0),
        cmap="gray",
        vmin=0,
        vmax=1,
        extent=(x, x + width, y + height, y),
        aspect="auto",
        interpolation="nearest",
    )


def _text_width(text: str, size: float, bold: bool = False) -> float:
    """Return about how wide a text is in inches, `size` in points."""
    return len(text) * (0.68 if bold else 0.6) * size / 72


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
