"""Grids of images, as functions from arrays to a matplotlib Figure.

Shapes: S = synthetic images of a class, R = real examples of it, image = (ch, h, w). Pixels are
values in [0, 1].
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from condensation.figure_style import WIDTH, plain, style

MAX_SYNTHETIC_SHOWN = 10  # synthetic images of each class in the grid
MAX_CLASSES_ABREAST = 20  # columns of classes; more classes go into further bands below

Images = np.ndarray | Sequence[np.ndarray]
"""Of each class (S, ch, h, w), ch 1 (grey) or 3 (RGB); or all in one array."""

# Inches.
EDGE, GUTTER, BAND_GAP, MAX_TILE = 0.06, 0.05, 0.22, 0.9
LABEL: dict[str, Any] = {"fontsize": 10, "fontweight": "bold"}


@style()
def image_grid(synthetic_pixels: Images, real_pixels: Images, class_names: Sequence[str]) -> Figure:
    """Return a figure of the synthetic images of each class beside real ones.

    Classes are columns where that makes the figure wider than tall, and rows otherwise. At most
    `MAX_SYNTHETIC_SHOWN` synthetic images of a class are drawn; the label then says so.

    Args:
        synthetic_pixels: Of each class.
        real_pixels: Of each class.
        class_names: One for each class.
    """
    most = _most(synthetic_pixels)
    shown = _first(synthetic_pixels, MAX_SYNTHETIC_SHOWN)
    label = "synthetic" if _most(shown) == most else f"synthetic ({_most(shown)} of {most})"
    images_per_class = _most(shown) + _most(real_pixels)
    num_classes, bands = len(class_names), math.ceil(len(class_names) / MAX_CLASSES_ABREAST)
    return _class_grid(
        [(label, shown), ("real", real_pixels)],
        class_names,
        group_gap=0.16,
        classes_as_rows=images_per_class * bands > num_classes / bands,
    )


@style()
def start_and_end(
    start: Images, end: Images, iterations: int, class_names: Sequence[str]
) -> Figure:
    """Return a figure of the synthetic images before and after condensation.

    At most `MAX_SYNTHETIC_SHOWN` images of a class are drawn.

    Args:
        start: Of each class.
        end: Likewise.
        iterations: Of condensation between the two.
        class_names: One for each class.
    """
    shown = [_first(images, MAX_SYNTHETIC_SHOWN) for images in (start, end)]
    labels = ("iteration 0", f"iteration {iterations}")
    num_classes, bands = len(class_names), math.ceil(len(class_names) / MAX_CLASSES_ABREAST)
    return _class_grid(
        list(zip(labels, shown, strict=True)),
        class_names,
        group_gap=0.16,
        classes_as_rows=2 * _most(shown[0]) * bands > num_classes / bands,
    )


@style()
def snapshot_strip(
    snapshots: Mapping[int, Images],
    class_names: Sequence[str],
    labels: Sequence[str] | None = None,
) -> Figure:
    """Return a figure of how the first image of each class changes: a row for each snapshot.

    Args:
        snapshots: Iteration -> images of each class.
        class_names: One for each class.
        labels: Of the rows; the iterations where there are none.
    """
    labels = labels or [f"iteration {number}" for number in sorted(snapshots)]
    shown = [_first(snapshots[number], 1) for number in sorted(snapshots)]
    groups = list(zip(labels, shown, strict=True))
    return _class_grid(groups, class_names, group_gap=0.0, classes_as_rows=False)


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
    groups: Sequence[tuple[str, Images]],
    class_names: Sequence[str],
    *,
    group_gap: float,
    classes_as_rows: bool,
) -> Figure:
    """Return a figure of labelled groups of images; a class that has fewer leaves places free.

    Everything is placed in inches, on one set of axes that covers the figure. `u` runs along the
    classes and `v` along the images of a class: (u, v) is (x, y) with classes as columns and (y, x)
    with classes as rows. More classes than fit abreast go into further bands along `v`.
    """
    images_per_class = sum(_most(images) for _, images in groups)
    gaps = group_gap * (len(groups) - 1)
    labels = [label for label, _ in groups]
    sizes = _measure(labels, class_names, images_per_class, gaps, classes_as_rows)
    height, width = groups[0][1][0].shape[-2:]
    tile_height = sizes.tile * height / width
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
            axes.text(v - 0.08, u + tile_u / 2, plain(name), ha="right", va="center", **text)
        else:
            axes.text(u + tile_u / 2, v - 0.06, plain(name), ha="center", va="bottom", **text)
        for label, images in groups:
            if place == 0:
                span = _most(images) * (tile_v + GUTTER) - GUTTER
                if not classes_as_rows:
                    axes.text(u - 0.12, v + span / 2, label, ha="right", va="center", **LABEL)
                elif _text_width(label, 10, bold=True) <= span:
                    axes.text(v, u - 0.06, label, ha="left", va="bottom", **LABEL)
                else:  # wider than its images: it starts further left, above the names
                    axes.text(v + span, u - 0.06, label, ha="right", va="bottom", **LABEL)
            for number in range(_most(images)):
                if number < len(images[index]):
                    x, y = (v, u) if classes_as_rows else (u, v)
                    _draw_image(axes, images[index][number], x, y, sizes.tile, tile_height)
                v += tile_v + GUTTER
            v += group_gap
    # Drawing an image sets limits: these come last.
    axes.set_axis_off()
    axes.set_xlim(0, figure.get_figwidth())
    axes.set_ylim(figure.get_figheight(), 0)
    return figure


def _first(images: Images, number: int) -> Images:
    return [of_class[:number] for of_class in images]


def _most(images: Images) -> int:
    # The number of images of the class that has most.
    return max(len(of_class) for of_class in images)


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
