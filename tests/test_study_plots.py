"""Figures of studies with more arms than those of the repository."""

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
