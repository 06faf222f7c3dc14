"""The pieces of the stage scripts that are not in a module."""

import dataclasses

import pytest

from condensation.params import load_params
from condense import PUBLISHED_LOOPS, loops
from conftest import ROOT
from evaluate import list_tasks, spread

PARAMS = load_params(ROOT / "params.yaml")


@pytest.mark.parametrize(
    "ipc, expected",
    [*PUBLISHED_LOOPS.items(), (2, (1, 1)), (7, (10, 50)), (15, (10, 50)), (100, (50, 10))],
)
def test_loops_are_the_published_ones_or_those_of_the_nearest_ipc(
    ipc: int, expected: tuple[int, int]
) -> None:
    assert loops(dataclasses.replace(PARAMS, ipc=ipc)) == expected


def test_loops_that_are_set_are_taken() -> None:
    condense = dataclasses.replace(PARAMS.condense, outer=3, inner=0)
    assert loops(dataclasses.replace(PARAMS, ipc=10, condense=condense)) == (3, 0)


def test_final_images_are_evaluated_with_the_full_number_and_snapshots_with_fewer() -> None:
    condense = dataclasses.replace(PARAMS.condense, iterations=9, snapshots=(0, 4, 9))
    numbers = dataclasses.replace(
        PARAMS.evaluate.by_network["mlp"], num_networks=3, snapshot_networks=2
    )
    evaluate = dataclasses.replace(PARAMS.evaluate, by_network={"mlp": numbers})
    tasks = list_tasks(dataclasses.replace(PARAMS, condense=condense, evaluate=evaluate), "mlp")
    assert sorted(tasks) == [(0, 0), (0, 1), (4, 0), (4, 1), (9, 0), (9, 1), (9, 2)]


def test_spread_is_the_sample_standard_deviation() -> None:
    assert spread([1.0, 3.0]) == "1.41" and spread([1.0]) == ""
