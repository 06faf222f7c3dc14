"""Figures of studies with more arms than those of the repository."""

import pandas as pd
import pytest

from condensation.study_plots import accuracy_curves


@pytest.mark.parametrize("arms", [2, 14, 24])
def test_every_arm_is_named_within_the_figure(arms: int) -> None:
    table = pd.DataFrame(
        {"iteration": [0, 10], "seconds": [0.0, 1.0], "accuracy": [10.0, 90.0], "half_width": 1.0}
    )
    facets = {"ConvNet": {f"method_{arm}": table for arm in range(arms)}}
    figure = accuracy_curves(facets, "iteration")
    figure.canvas.draw()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == arms
    extent = legend.get_window_extent()
    assert 0 <= extent.y0 < extent.y1 <= figure.bbox.y1
