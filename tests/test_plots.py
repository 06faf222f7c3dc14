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

from condensation import figure_style, image_grids, plots

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
    return pd.DataFrame({**columns, "ceiling": ceiling})


CURVES = {
    "convnet": curve([70.0, 90.0, 94.05], [NAN, NAN, 0.31], [1, 1, 5]),
    "mlp": curve([60.0, 70.0, 79.2], [2.0, 1.0, 0.5], [5, 5, 5], ceiling=96.0),
}
SINGLE = {"convnet": curve([94.0], [NAN], [1])}

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
    for name in ("a.png", "b.png"):
        figure = DRAW[case]()
        figure_style.save(figure, tmp_path / name, dpi=40)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert b"Software" not in contents[0]

    drawn = imread(io.BytesIO(contents[0]))[..., :3]
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


def test_loss_curve_has_a_line_for_each_class_on_log_scales() -> None:
    figure = plots.loss_curve(*losses(20, 10), names(10))
    total, by_class = figure.axes
    assert (len(total.lines), len(by_class.lines)) == (1, 10)
    assert total.get_yscale() == by_class.get_yscale() == "log"
    looks = {(line.get_color(), str(line.get_linestyle())) for line in by_class.lines}
    assert len(looks) == 10
    assert {*names(10), "iteration", "matching loss"} <= set(texts(figure))
    np.testing.assert_allclose(np.asarray(total.lines[0].get_ydata())[:2], [10, 5])


def test_long_loss_curve_is_smoothed_and_says_so() -> None:
    figure = plots.loss_curve(*losses(200, 3), names(3))
    assert len(figure.axes[0].lines) == 2
    assert "matching loss (mean over 4 iterations)" in texts(figure)


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


def test_a_short_bar_has_its_number_beside_it() -> None:
    (axes,) = plots.retained_bars({"mlp": curve([11.0], [3.0], [5])}).axes
    (score,) = [text for text in axes.texts if "n = 5" in text.get_text()]
    assert score.get_position()[0] > 14


def test_drawing_ignores_and_keeps_the_settings_of_matplotlib() -> None:
    with matplotlib.rc_context({"font.size": 23.0}):
        figure = plots.retained_bars(SINGLE)
        assert matplotlib.rcParams["font.size"] == 23.0
    assert all(float(text.get_fontsize()) < 23 for text in figure.axes[0].texts)
