"""The figures: what is drawn on them, degenerate tables, and the same bytes twice."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from PIL import Image

from condensation import animation, class_plots, figure_style, image_grids, plots

NAN = float("nan")


def pixels(num_classes: int, per_class: int, channels: int = 1, size: int = 4) -> np.ndarray:
    generator = np.random.default_rng([num_classes, per_class, channels])
    return generator.random((num_classes, per_class, channels, size, size), np.float32)


def names(num_classes: int) -> list[str]:
    return [f"name{index}" for index in range(num_classes)]


def losses(
    num_iterations: int, num_classes: int, scale: float = 1.0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    iterations = range(1, num_iterations + 1)
    total = pd.DataFrame(
        {"iteration": iterations, "loss": [scale * num_classes / i for i in iterations]}
    )
    rows = [(i, name, scale / i) for i in iterations for name in names(num_classes)]
    return total, pd.DataFrame(rows, columns=["iteration", "class", "loss"])


def curve(
    accuracy: Sequence[float], std: Sequence[float], n: Sequence[int], ceiling: float = 99.0
) -> pd.DataFrame:
    columns = {"iteration": range(0, 10 * len(n), 10), "accuracy": accuracy, "std": std, "n": n}
    seconds = [2.5 * iteration for iteration in columns["iteration"]]
    return pd.DataFrame({**columns, "seconds": seconds, "ceiling": ceiling})


CURVES = {
    "convnet": curve([70.0, 90.0, 94.05], [NAN, NAN, 0.31], [1, 1, 5]),
    "mlp": curve([60.0, 70.0, 79.2], [2.0, 1.0, 0.5], [5, 5, 5], ceiling=96.0),
}
SINGLE = {"convnet": curve([94.0], [NAN], [1])}


def test_signs_that_no_font_has_are_named_and_drawn_as_boxes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the one font that is there everywhere; a warning would fail."""
    monkeypatch.setattr(figure_style, "fonts", lambda: (figure_style.FONT,))
    assert figure_style.undrawable(["café", "日本", "本ж"]) == "日本"
    figure = image_grids.image_grid(pixels(2, 1), pixels(2, 1), ["日本", "b"])
    for name in ("figure.png", "figure.pdf"):
        figure_style.save(figure, tmp_path / name, 30)


def confusion(num_classes: int, right: float = 7.0) -> pd.DataFrame:
    rows = [
        (true, taken, right if true == taken else 1.0)
        for true in names(num_classes)
        for taken in names(num_classes)
    ]
    return pd.DataFrame(rows, columns=["class", "predicted", "count"])


def class_table(num_classes: int, std: float = 1.5, n: int = 5) -> pd.DataFrame:
    accuracy = [90.0 - 80 * index / num_classes for index in range(num_classes)]
    return pd.DataFrame({"class": names(num_classes), "accuracy": accuracy, "std": std, "n": n})


DRAW: dict[str, Callable[[], Figure]] = {
    "grid": lambda: image_grids.image_grid(pixels(10, 1), pixels(10, 4), names(10)),
    "grid, 10 a class": lambda: image_grids.image_grid(pixels(10, 10), pixels(10, 4), names(10)),
    "grid, colour": lambda: image_grids.image_grid(pixels(3, 1, 3), pixels(3, 2, 3), names(3)),
    "grid, one class": lambda: image_grids.image_grid(pixels(1, 1), pixels(1, 1), names(1)),
    "grid, 100 classes": lambda: image_grids.image_grid(pixels(100, 1), pixels(100, 1), names(100)),
    "strip": lambda: image_grids.snapshot_strip({0: pixels(10, 1), 5: pixels(10, 1)}, names(10)),
    "strip, one of one class": lambda: image_grids.snapshot_strip({7: pixels(1, 3)}, names(1)),
    "strip, 45 classes": lambda: image_grids.snapshot_strip({0: pixels(45, 1, 3)}, names(45)),
    "loss": lambda: plots.loss_curve(*losses(20, 10), names(10)),
    "loss, long": lambda: plots.loss_curve(*losses(200, 3), names(3)),
    "loss, one point of one class": lambda: plots.loss_curve(*losses(1, 1), names(1)),
    "loss, zero": lambda: plots.loss_curve(*losses(5, 2, scale=0.0), names(2)),
    "loss, 100 classes": lambda: plots.loss_curve(*losses(3, 100), names(100)),
    "accuracy": lambda: plots.accuracy_curve(CURVES),
    "accuracy, one point": lambda: plots.accuracy_curve(SINGLE),
    "seconds": lambda: plots.accuracy_curve(CURVES, "seconds"),
    "confusion": lambda: class_plots.confusion_panels(
        {name: confusion(10) for name in ("convnet", "lenet", "mlp", "fourth")}, names(10)
    ),
    "confusion, one network": lambda: class_plots.confusion_panels({"a": confusion(3)}, names(3)),
    "confusion, 100 classes": lambda: class_plots.confusion_panels(
        {"a": confusion(100), "b": confusion(100)}, names(100)
    ),
    "classes": lambda: class_plots.class_accuracies(
        {"a": class_table(10), "b": class_table(10)}, names(10)
    ),
    "classes, n = 1": lambda: class_plots.class_accuracies({"a": class_table(3, NAN, 1)}, names(3)),
    "classes, 100": lambda: class_plots.class_accuracies({"a": class_table(100)}, names(100)),
    "start and end": lambda: image_grids.start_and_end(pixels(10, 1), pixels(10, 1), 9, names(10)),
    "start and end, colour": lambda: image_grids.start_and_end(
        pixels(10, 12, 3), pixels(10, 12, 3), 9, names(10)
    ),
    "classes, one unknown": lambda: class_plots.class_accuracies(
        {"a": class_table(3).replace({"accuracy": {90.0: NAN}, "std": {1.5: NAN}})}, names(3)
    ),
    "retained": lambda: plots.retained_bars(CURVES),
    "retained, n = 1": lambda: plots.retained_bars(SINGLE),
}


def texts(figure: Figure) -> list[str]:
    found = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [text.get_text() for text in found if text.get_text()]


def num_error_bars(axes: Axes) -> int:
    bars = [item for item in axes.collections if isinstance(item, LineCollection)]
    return sum(len(item.get_segments()) for item in bars)


@pytest.mark.parametrize("case", DRAW)
def test_same_input_gives_the_same_readable_png(case: str, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        figure = DRAW[case]()
        for suffix in ("png", "pdf"):
            figure_style.save(figure, tmp_path / f"{name}.{suffix}", dpi=40)
        contents.append([(tmp_path / f"{name}.{suffix}").read_bytes() for suffix in ("png", "pdf")])
    assert contents[0] == contents[1]
    png, pdf = contents[0]
    assert b"Software" not in png
    assert pdf.startswith(b"%PDF") and b"CreationDate" not in pdf

    found = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    sizes = [float(text.get_fontsize()) for text in found if text.get_text()]
    assert min(sizes) >= 7.5, "at the width of a README, 830 pixels, 10 pixels"

    drawn = imread(io.BytesIO(png))[..., :3]
    width, height = figure.get_size_inches()
    assert drawn.shape[:2] == pytest.approx((height * 40, width * 40), abs=1)
    assert width <= figure_style.WIDTH
    assert drawn.std() > 0.02
    # A clear edge: nothing is cut off, neither text nor image.
    edges = (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1])
    assert all(edge.mean() > 0.97 for edge in edges)


@pytest.mark.parametrize(
    ("num_classes", "ipc", "num_real"), [(10, 1, 4), (10, 10, 4), (3, 2, 2), (1, 1, 1), (100, 1, 1)]
)
def test_image_grid_shows_every_image_and_name(num_classes: int, ipc: int, num_real: int) -> None:
    figure = image_grids.image_grid(
        pixels(num_classes, ipc), pixels(num_classes, num_real), names(num_classes)
    )
    (axes,) = figure.axes
    assert len(axes.images) == num_classes * (ipc + num_real)
    assert {*names(num_classes), "synthetic", "real"} == set(texts(figure))


@pytest.mark.parametrize("ipc", [1, 10])
def test_image_grid_of_ten_classes_is_wide(ipc: int) -> None:
    figure = image_grids.image_grid(pixels(10, ipc), pixels(10, 4), names(10))
    width, height = figure.get_size_inches()
    assert width > 1.3 * height


def test_image_grid_keeps_synthetic_and_real_apart_and_in_order() -> None:
    synthetic, real = pixels(10, 1), pixels(10, 2)
    (axes,) = image_grids.image_grid(synthetic, real, names(10)).axes
    lefts, tops = zip(*((i.get_extent()[0], i.get_extent()[3]) for i in axes.images), strict=True)
    for image, expected in zip(axes.images[:3], (synthetic[0, 0], *real[0]), strict=True):
        np.testing.assert_array_equal(image.get_array(), expected[0])
    assert lefts[0] == pytest.approx(lefts[1]) and lefts[3] > lefts[0]
    assert tops[1] - tops[0] > 1.05 * (tops[2] - tops[1])


def test_image_grid_says_what_it_leaves_out() -> None:
    figure = image_grids.image_grid(pixels(2, 50), pixels(2, 1), names(2))
    assert "synthetic (10 of 50)" in texts(figure)
    assert len(figure.axes[0].images) == 2 * 11


def test_image_grid_of_numbers_that_differ() -> None:
    """Each image is drawn; the real ones of all classes are in line, beside free places."""
    synthetic = [pixels(1, number)[0] for number in (1, 12, 3)]
    figure = image_grids.image_grid(synthetic, pixels(3, 1), names(3))
    (axes,) = figure.axes
    assert len(axes.images) == 1 + 10 + 3 + 3 and "synthetic (10 of 12)" in texts(figure)
    real = [axes.images[place].get_extent() for place in (1, 12, 16)]
    assert len({round(left, 6) for left, *_ in real}) == 1


def test_grey_is_not_rescaled_and_colour_is_kept() -> None:
    (grey,) = image_grids.image_grid(0.5 + 0 * pixels(1, 1), pixels(1, 1), names(1)).axes
    assert grey.images[0].get_clim() == (0, 1)
    colour = pixels(1, 1, 3)
    (axes,) = image_grids.image_grid(colour, colour, names(1)).axes
    np.testing.assert_array_equal(axes.images[0].get_array(), colour[0, 0].transpose(1, 2, 0))


def test_snapshot_strip_has_a_row_for_each_iteration_in_order() -> None:
    strip = {10: pixels(4, 2), 0: pixels(4, 1), 5: pixels(4, 3)}
    figure = image_grids.snapshot_strip(strip, names(4))
    (axes,) = figure.axes
    assert len(axes.images) == 3 * 4
    heights = {t.get_text(): t.get_position()[1] for t in axes.texts}
    assert heights["iteration 0"] < heights["iteration 5"] < heights["iteration 10"]
    np.testing.assert_array_equal(axes.images[0].get_array(), strip[0][0, 0, 0])


def test_loss_curve_has_a_panel_for_each_class_on_log_scales() -> None:
    """In each panel its own class stands out from the others, in grey too."""
    figure = plots.loss_curve(*losses(20, 10), names(10))
    total, *panels = figure.axes
    assert len(total.lines) == 1 and len(panels) == 10
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    for name, axes in zip(names(10), panels, strict=True):
        assert axes.get_title(loc="left") == name
        *others, own = axes.lines
        assert len(others) == 9 and own.get_alpha() is None
        assert all(line.get_linewidth() < own.get_linewidth() / 2 for line in others)
    assert {*names(10), "iteration", "matching loss"} <= set(texts(figure))
    np.testing.assert_allclose(np.asarray(total.lines[0].get_ydata())[:2], [10, 5])


def test_an_odd_number_of_classes_leaves_a_panel_empty() -> None:
    figure = plots.loss_curve(*losses(20, 3), names(3))
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False]


def test_long_loss_curve_is_smoothed_and_says_so() -> None:
    figure = plots.loss_curve(*losses(200, 3), names(3))
    assert len(figure.axes[0].lines) == 2
    assert "matching loss (mean over 8 iterations)" in texts(figure)


def test_zero_loss_is_drawn_on_a_linear_scale() -> None:
    figure = plots.loss_curve(*losses(5, 2, scale=0.0), names(2))
    assert {axes.get_yscale() for axes in figure.axes} == {"linear"}


def test_a_single_zero_leaves_the_log_scale() -> None:
    total, by_class = losses(5, 2)
    total.loc[2, "loss"] = 0.0
    figure = plots.loss_curve(total, by_class, names(2))
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_ylim()[0] > 0.1


def test_many_classes_are_lines_without_names() -> None:
    figure = plots.loss_curve(*losses(3, 100), names(100))
    assert len(figure.axes[1].lines) == 100
    assert "each of 100 classes" in texts(figure) and "name7" not in texts(figure)


def test_accuracy_curve_shows_spread_counts_and_ceiling() -> None:
    figure = plots.accuracy_curve(CURVES)
    (axes,) = figure.axes
    assert num_error_bars(axes) == 1 + 3  # where n is 1 there is no spread
    assert [line.get_marker() for line in axes.lines if line.get_markerfacecolor() == "white"] == [
        "o",
        "s",
    ]  # the ceilings can be told apart in grey
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [np.asarray(line.get_ydata())[0] for line in dotted] == [99.0, 96.0]
    assert {"convnet\nn = 1 (last: 5)", "mlp\nn = 5"} <= set(texts(figure))


def test_accuracy_curve_of_one_network_once() -> None:
    figure = plots.accuracy_curve(SINGLE)
    assert num_error_bars(figure.axes[0]) == 0
    assert "convnet\nn = 1" in texts(figure)


def test_accuracy_curve_of_varying_counts() -> None:
    counts = curve([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [2, 3, 9])
    assert "mlp\nn = 2 to 3 (last: 9)" in texts(plots.accuracy_curve({"mlp": counts}))


def test_retained_bars_carry_their_numbers() -> None:
    figure = plots.retained_bars(CURVES)
    (axes,) = figure.axes
    widths = [patch.get_width() for patch in axes.patches]  # type: ignore[attr-defined]
    assert widths == pytest.approx([99.0, 94.05, 96.0, 79.2])
    assert num_error_bars(axes) == 2
    expected = {"convnet", "mlp", "94.0 ± 0.3 %   (n = 5)", "79.2 ± 0.5 %   (n = 5)"}
    expected |= {"95.0 % retained", "82.5 % retained", "ceiling 99.0 %", "ceiling 96.0 %"}
    assert expected <= set(texts(figure))


def test_retained_bars_of_one_network_have_no_spread() -> None:
    figure = plots.retained_bars(SINGLE)
    assert num_error_bars(figure.axes[0]) == 0
    assert {"94.0 %   (n = 1)", "94.9 % retained"} <= set(texts(figure))


def test_of_a_ceiling_of_nothing_no_part_is_retained() -> None:
    nothing = {"mlp": curve([0.0], [NAN], [1], ceiling=0.0)}
    shown = texts(plots.retained_bars(nothing))
    assert "ceiling 0.0 %" in shown and not any("retained" in text for text in shown)


@pytest.mark.parametrize("name", ["$\\frac$", "a $ b", "50$ to 100$", r"\$x$"])
def test_names_are_no_formulas(name: str, tmp_path: Path) -> None:
    """Wherever classes are named, they are drawn as they are written."""
    classes = (name, "other")
    renamed = {"class": {"name0": name, "name1": "other"}}
    renamed["predicted"] = renamed["class"]
    figures = [
        image_grids.image_grid(pixels(2, 1), pixels(2, 1), classes),
        image_grids.snapshot_strip({0: pixels(2, 1)}, classes),
        plots.loss_curve(losses(3, 2)[0], losses(3, 2)[1].replace(renamed), classes),
        class_plots.confusion_panels({"a": confusion(2).replace(renamed)}, classes),
        class_plots.class_accuracies({"a": class_table(2).replace(renamed)}, classes),
    ]
    for figure in figures:
        figure_style.save(figure, tmp_path / "a.pdf", dpi=40)
        shown = [text._preprocess_math(text.get_text()) for text in figure.findobj(Text)]  # type: ignore[attr-defined]
        assert (name, False) in shown


def test_a_short_bar_has_its_number_beside_it() -> None:
    (axes,) = plots.retained_bars({"mlp": curve([11.0], [3.0], [5])}).axes
    (score,) = [text for text in axes.texts if "n = 5" in text.get_text()]
    assert score.get_position()[0] > 14


def test_drawing_ignores_and_keeps_the_settings_of_matplotlib() -> None:
    with matplotlib.rc_context({"font.size": 23.0}):
        figure = plots.retained_bars(SINGLE)
        assert matplotlib.rcParams["font.size"] == 23.0
    assert all(float(text.get_fontsize()) < 23 for text in figure.axes[0].texts)


def test_accuracy_against_seconds() -> None:
    (axes,) = plots.accuracy_curve(CURVES, "seconds").axes
    assert axes.get_xlabel() == "seconds of condensation"
    assert any(np.array_equal(line.get_xdata(), [0.0, 25.0, 50.0]) for line in axes.lines)


def test_rows_of_a_confusion_matrix_are_percentages() -> None:
    """Also where the table's rows come in another order than the classes."""
    shuffled = confusion(3).sample(frac=1, random_state=0)
    shuffled.loc[(shuffled["class"] == "name1") & (shuffled["predicted"] == "name2"), "count"] = 2
    (axes,) = class_plots.confusion_panels({"net": shuffled}, names(3)).axes
    shown = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shown.sum(1), 100)
    np.testing.assert_allclose(shown[1], [10, 70, 20])
    assert [text.get_text() for text in axes.texts[3:6]] == ["10", "70", "20"]
    assert axes.get_title(loc="left") == "net"


def test_class_accuracies_have_marks_of_their_own_and_spreads() -> None:
    tables = {"a": class_table(4), "b": class_table(4, NAN, 1)}
    (axes,) = class_plots.class_accuracies(tables, names(4)).axes
    assert num_error_bars(axes) == 4
    assert {"a (n = 5)", "b (n = 1)"} <= set(texts(axes.figure))  # type: ignore[arg-type]
    marks = [line.get_marker() for line in axes.lines if len(line.get_xdata()) == 4]  # type: ignore[arg-type]
    assert {"o", "s"} <= set(marks)


def test_start_and_end_shows_both() -> None:
    start, end = pixels(4, 2), pixels(4, 2) / 2
    figure = image_grids.start_and_end(start, end, 30, names(4))
    images = figure.axes[0].images
    assert len(images) == 16 and {"iteration 0", "iteration 30"} <= set(texts(figure))
    np.testing.assert_array_equal(images[0].get_array(), start[0, 0, 0])
    np.testing.assert_array_equal(images[2].get_array(), end[0, 0, 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_animation_has_a_frame_for_each_iteration(channels: int) -> None:
    frames = {i: pixels(3, 1, channels) * (1 + i) / 8 for i in (0, 7, 2)}
    content = animation.animation(frames, names(3))
    assert content == animation.animation(frames, names(3))
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3 and image.info["loop"] == 0  # type: ignore[attr-defined]
        shown, durations = [], []
        for index in range(3):
            image.seek(index)
            durations.append(image.info["duration"])
            shown.append(np.asarray(image.convert("RGB")).astype(float).mean())
    assert durations == [1000, 160, 2500]
    assert shown[0] < shown[1] < shown[2]  # in the order of the iterations: ever brighter


def test_a_grid_of_colours_keeps_them(tmp_path: Path) -> None:
    """A palette of 256 would change them visibly."""
    colour = pixels(4, 4, 3, size=16)
    figure = image_grids.image_grid(colour, colour, names(4))
    figure_style.save(figure, tmp_path / "a.png", dpi=100)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"
    figure_style.save(plots.retained_bars(SINGLE), tmp_path / "b.png", dpi=100)
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == "P"
