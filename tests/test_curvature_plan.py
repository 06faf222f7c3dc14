"""Which image steps have the term of order 2, and with which weight."""

from pathlib import Path
from typing import Any

import pytest

from condensation.curvature import CURVATURE_FORMS
from condensation.curvature_plan import CurvaturePlan
from condensation.matching import Curvature
from condensation.params import load_params
from condensation.training import SCHEDULES
from condense import curvature_plan
from workspace import write_params

TERM = Curvature(CURVATURE_FORMS["ggn"], 0.4, 4, 2)


def weights(schedule: str = "constant", every: int = 1, until: int = 20) -> list[float]:
    """Of the steps of a run of 20; 0 where there is no term."""
    plan = CurvaturePlan(TERM, SCHEDULES[schedule], every, until, 20)
    terms = [plan.at(step) for step in range(20)]
    return [0.0 if term is None else float(term.weight) for term in terms]


def test_the_term_is_the_one_given() -> None:
    assert CurvaturePlan(TERM, SCHEDULES["constant"], 1, 20, 20).at(3) == TERM


def test_it_comes_every_so_many_image_steps() -> None:
    assert weights(every=3) == [0.4, 0.0, 0.0] * 6 + [0.4, 0.0]


def test_it_ends() -> None:
    assert weights(until=6) == [0.4] * 6 + [0.0] * 14


def test_its_weight_follows_the_schedule() -> None:
    expected = [0.4 * (1 - step / 20) for step in range(20)]
    assert weights("linear_decay") == pytest.approx(expected)
    assert weights("tenth_after_half")[9:11] == pytest.approx([0.4, 0.04])


@pytest.mark.parametrize(
    ("form", "every", "until", "layers", "num_real", "num_probes", "expected"),
    [
        ("hvp", 1, 20, None, 4, 1, True),
        ("hvp", 1, 20, None, 5, 1, False),  # gradients of more images than products
        ("hvp", 1, 20, None, 4, 0, False),  # the probe is the gradient
        ("hvp", 2, 20, None, 4, 1, False),
        ("hvp", 1, 10, None, 4, 1, False),
        ("hvp", 1, 20, 1, 4, 1, False),
        ("lookahead", 1, 20, None, 4, 1, False),
    ],
)
def test_when_the_real_gradients_come_in_the_pass_of_the_products(
    form: str,
    every: int,
    until: int,
    layers: int | None,
    num_real: int,
    num_probes: int,
    expected: bool,
) -> None:
    term = Curvature(CURVATURE_FORMS[form], 0.4, 4, layers)
    plan = CurvaturePlan(term, SCHEDULES["constant"], every, until, 20, num_probes)
    assert plan.in_one_pass(num_real) is expected


OWN: dict[str, Any] = {
    "form": "ggn",
    "weight": 0.4,
    "schedule": "tenth_after_half",
    "iterations": 2,
    "layers": 1,
    "probes": "rademacher",
    "num_probes": 3,
    "real_per_class": 4,
    "every": 2,
}


@pytest.mark.parametrize(
    "changes, term, until, num_probes",
    [
        ({}, (0.4, 4, 1), 6, 3),
        ({"probes": "gradient"}, (0.4, 4, 1), 6, 0),
        ({"iterations": "auto"}, (0.4, 4, 1), 15, 3),
        ({"layers": "auto"}, (0.4, 4, None), 6, 3),
        ({"real_per_class": "auto"}, (0.4, 7, 1), 6, 3),
    ],
    ids=str,
)
def test_the_plan_is_that_of_the_settings(
    changes: dict[str, Any],
    term: tuple[float, int, int | None],
    until: int,
    num_probes: int,
    tmp_path: Path,
) -> None:
    """Of five iterations of three image steps, on batches of seven real images."""
    own = {f"condense.curvature.{key}": value for key, value in {**OWN, **changes}.items()}
    run = {"condense.iterations": 5, "condense.outer": 3, "condense.real_per_class": 7}
    write_params(tmp_path, {**run, **own})
    expected = CurvaturePlan(
        Curvature(CURVATURE_FORMS["ggn"], *term),
        SCHEDULES["tenth_after_half"],
        every=2,
        until=until,
        steps=15,
        num_probes=num_probes,
    )
    assert curvature_plan(load_params(tmp_path / "params.yaml")) == expected


def test_order_1_has_no_plan(tmp_path: Path) -> None:
    write_params(tmp_path, {"order": 1})
    assert curvature_plan(load_params(tmp_path / "params.yaml")) is None
