"""The statistics of studies against closed forms and other implementations."""

import math

import numpy as np
import pandas as pd
import pytest

from condensation.study_statistics import (
    at_seconds,
    differences,
    estimate,
    reached,
    set_means,
    summary,
)

SCORES = pd.DataFrame(
    [
        ("mlp", 0, 0, 0, 10.0),
        ("mlp", 0, 1, 0, 20.0),
        ("mlp", 5, 0, 0, 60.0),
        ("mlp", 5, 0, 1, 64.0),
        ("mlp", 5, 1, 0, 70.0),
        ("mlp", 5, 1, 1, 74.0),
        ("lenet", 5, 0, 0, 99.0),
    ],
    columns=["network", "iteration", "set", "index", "accuracy"],
)


@pytest.mark.parametrize(
    ("n", "quantile"), [(2, 12.7062), (3, 4.3027), (5, 2.7764), (10, 2.2622), (31, 2.0423)]
)
def test_the_interval_has_the_tabled_quantiles_of_student(n: int, quantile: float) -> None:
    values = [math.sin(i) for i in range(n)]
    found = estimate(values)
    expected = quantile * np.std(values, ddof=1) / math.sqrt(n)
    assert found.half_width == pytest.approx(expected, rel=1e-4)
    assert found.mean == pytest.approx(sum(values) / n) and found.n == n


def test_one_value_has_no_interval() -> None:
    assert math.isnan(estimate([3.0]).half_width)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draws = np.random.default_rng(0).normal(7.0, 2.0, (4000, 5))
    hits = [abs(found.mean - 7) < found.half_width for found in map(estimate, draws.tolist())]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.012)


def test_networks_of_a_set_are_averaged_before_the_sets_are() -> None:
    assert set_means(SCORES, "mlp").to_dict("index") == {0: {0: 10, 1: 20}, 5: {0: 62, 1: 72}}
    found = summary(SCORES, "mlp").iloc[-1]
    assert found["accuracy"] == 67 and (found["networks"], found["sets"]) == (4, 2)
    assert found["half_width"] == pytest.approx(12.7062 * 5, rel=1e-4)
    assert found["std"] == pytest.approx(np.std([60, 64, 70, 74], ddof=1))


def test_paired_differences_leave_out_what_the_sets_share() -> None:
    theirs = np.array([50.0, 60.0, 80.0])
    found = differences(theirs + [1.0, 2.0, 3.0], theirs)
    assert found.mean == 2 and found.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)


def test_accuracies_between_snapshots_are_interpolated_and_the_last_stays() -> None:
    values = at_seconds(set_means(SCORES, "mlp"), [0.0, 4.0], [0.0, 1.0, 4.0, 9.0])
    assert values.tolist() == [[10, 20], [23, 33], [62, 72], [62, 72]]


def test_before_the_first_images_there_is_no_accuracy() -> None:
    values = at_seconds(set_means(SCORES, "mlp"), [2.0, 6.0], [1.0, 2.0, 4.0])
    assert np.isnan(values[0]).all()
    assert values[1:].tolist() == [[10, 20], [36, 46]]


@pytest.mark.parametrize(
    ("target", "expected"), [(5.0, 0.0), (15.0, 5.0), (20.0, 10.0), (25.0, 15.0), (31.0, None)]
)
def test_where_a_curve_first_reaches_a_target(target: float, expected: float | None) -> None:
    assert reached([0, 10, 20, 30], [10, 20, 30, 15], target) == expected
