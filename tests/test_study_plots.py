"""Figures of studies with more arms than those of the repository."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from condensation.study_plots import accuracy_curves, final_accuracies


@pytest.mark.parametrize("arms", [2, 14, 24])
def test_every_arm_is_named_within_the_figure(arms: int) -> None:
    table = pd.DataFrame(
        {"iteration": [0, 10], "seconds": [0.0, 1.0], "accuracy": [10.0, 90.0], "half_width": 1.0}
    )
    facets = {"ConvNet": {f"method_{arm}": table for arm in range(arms)}}
    figure = accuracy_curves(facets, "iteration")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == arms
    extent = legend.get_window_extent()
    assert 0 <= extent.y0 < extent.y1 <= figure.bbox.y1


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize(
    ("accuracies", "ticks"),
    [
        ([10.0, 93.0], [0, 30, 50, 70, 80, 90]),
        ([64.0, 72.0], [65, 68, 70, 72]),
        ([95.0, 100.0], [95, 98, 99, 99.5]),
    ],
)
def test_accuracies_are_drawn_by_their_errors(
    accuracies: list[float], ticks: list[float], published: bool
) -> None:
    table = pd.DataFrame({"iteration": [0, 10], "accuracy": accuracies, "half_width": 1.0})
    if published:
        table["published"] = accuracies[-1]
    figure = accuracy_curves({"ConvNet": {"mean": table}}, "iteration")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_yticks().tolist() == ticks
    (legend,) = figure.legends
    assert ("published" in legend.get_title().get_text()) == published
    assert len(axes.lines) == 1 + published


@pytest.mark.parametrize(
    ("iterations", "shown"),
    [
        ((0, 10, 30, 100, 150), [0, 10, 30, 150]),
        ((0, 10, 50, 200), [0, 10, 50, 200]),
        ((0, 1, 2, 3, 4), [0, 1, 2, 3, 4]),
        ((0, 5, 1000, 1300), [5, 1300]),
    ],
)
def test_iterations_and_titles_do_not_touch(iterations: tuple[int, ...], shown: list[int]) -> None:
    """Three panels abreast, where there is least room."""
    table = pd.DataFrame(
        {"iteration": iterations, "accuracy": np.linspace(74, 84, len(iterations))}
    ).assign(half_width=1.0)
    titles = ("Fashion-MNIST, 1 image a class", "MNIST, 10 images a class", "Fashion-MNIST, 10")
    arm = "Fashion-MNIST, 10 images, augmented"  # the legend leaves the less room for it
    figure = accuracy_curves({title: {arm: table} for title in titles}, "iteration")
    figure.draw_without_rendering()
    for axes in figure.axes:
        numbers = [tick.get_window_extent() for tick in axes.get_xticklabels()]
        assert axes.get_xticks().tolist() == shown
        assert all(a.x1 + 3 < b.x0 for a, b in pairwise(numbers))
    headings = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(a.x1 + 5 < b.x0 for a, b in pairwise(headings))


@pytest.mark.parametrize("letters", [8, 22, 40])
def test_facets_have_room_beside_the_names_of_their_arms(letters: int) -> None:
    table = pd.DataFrame({"iteration": [0, 10], "accuracy": [96.0, 97.0], "half_width": 1.0})
    names = [f"{panel}".ljust(letters, "x") for panel in range(3)]
    facets = {f"MNIST, {name[0]} images a class": {name: table} for name in names}
    figure = final_accuracies(facets)
    figure.draw_without_rendering()
    for axes in figure.axes:
        extent = axes.get_tightbbox()  # with its title and the names of its arms
        assert extent is not None and 0 <= extent.x0 < extent.x1 <= figure.bbox.x1
        assert axes.get_window_extent().width > 0.1 * figure.bbox.width
