"""The search of a study's grids, on functions whose best point is known."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from condensation.study_records import read_chosen, write_tuning
from condensation.study_tuning import Score, Values, beyond, search


def score_of(values: Mapping[str, float], best: Mapping[str, float]) -> Score:
    """Return a score that falls with the distance from the best point; 1000 diverges."""
    if any(value >= 1000 for value in values.values()):
        return Score(None, None, 0, 1.0)
    lost = sum(abs(math.log(values[key] / best[key])) for key in best)
    return Score(90 - lost, 1.0, 3, 2.0)


@pytest.mark.parametrize(
    ("best", "chosen", "tried", "at_edge"),
    [
        (1.0, 1, 3, []),
        (4.0, 3, 4, []),  # extended once: 9 is worse
        (30.0, 27, 6, []),
        (500.0, 27, 5, ["lr"]),  # after two extensions it stops, and says so
        (0.01, 0.033, 5, ["lr"]),
    ],
)
def test_a_grid_is_extended_while_the_best_is_at_its_edge(
    best: float, chosen: float, tried: int, at_edge: list[str]
) -> None:
    extensions = 3 if best == 30 else 2
    found = search({"lr": [0.3, 1, 3]}, extensions, lambda v: score_of(v, {"lr": best}))
    assert found.chosen == {"lr": pytest.approx(chosen, rel=0.2)}
    assert len(found.trials) == tried and found.at_edge == at_edge


def test_grids_are_searched_one_after_another_and_no_point_twice() -> None:
    seen: list[Values] = []

    def attempt(values: Values) -> Score:
        seen.append(values)
        return score_of(values, {"lr": 1.0, "weight": 0.1})

    found = search({"lr": [0.1, 1, 10], "weight": [0.01, 0.1, 1]}, 2, attempt)
    assert found.chosen == {"lr": 1, "weight": 0.1} and len(seen) == 5
    assert all(seen.count(values) == 1 for values in seen)


def test_what_diverges_is_never_chosen() -> None:
    found = search({"lr": [10, 100, 1000]}, 0, lambda v: score_of(v, {"lr": 1000.0}))
    assert found.chosen == {"lr": 100}
    with pytest.raises(ValueError, match="lr: every value diverges: 1000, 2000"):
        search({"lr": [1000, 2000]}, 0, lambda v: score_of(v, {"lr": 1.0}))


@pytest.mark.parametrize(
    ("tried", "best", "expected"),
    [
        ([0.01, 0.03, 0.1], 0.1, 0.33),
        ([0.01, 0.03, 0.1], 0.01, 0.0033),
        ([0.01, 0.03, 0.1], 0.03, None),
        ([1.0], 1.0, None),
    ],
)
def test_grids_go_on_by_their_own_factor(
    tried: list[float], best: float, expected: float | None
) -> None:
    assert beyond(tried, best) == expected


@pytest.mark.parametrize("grid", [{}, {"a.lr": [1, 2]}, {"a.lr": [0.5, 1.0], "a.n": [1, 2]}])
def test_what_was_chosen_is_read_again(grid: dict[str, list[float]], tmp_path: Path) -> None:
    found = search(grid, 0, lambda values: Score(sum(values.values()), None, 1, 0.0))
    write_tuning(tmp_path / "arm.csv", found)
    assert read_chosen(tmp_path / "arm.csv") == found.chosen
    with pytest.raises(ValueError, match=r"none\.csv: cannot be read .*; tune the arm first"):
        read_chosen(tmp_path / "none.csv")
