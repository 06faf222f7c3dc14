"""The pieces of the stage scripts that are not in a module."""

import dataclasses
from pathlib import Path

import pytest
import torch

from condensation.datasets import Dataset
from condensation.params import Params, load_params
from condense import PUBLISHED_LOOPS, check_loss, frame_iterations, loops
from conftest import ROOT
from evaluate import list_tasks, load_sets, spread

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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_what_to_look_at(bad: float) -> None:
    check_loss(torch.tensor([1.0, 2.0]), 7, ("a", "b"))
    with pytest.raises(ValueError, match=r"iteration 7 \(classes: b\); .*image_learning_rate"):
        check_loss(torch.tensor([1.0, bad]), 7, ("a", "b"))


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


@pytest.mark.parametrize(
    ("iterations", "num_frames", "expected"),
    [(9, 4, {0, 1, 4, 9}), (100, 2, {0, 100}), (2, 20, {0, 1, 2}), (1, 5, {0, 1})],
)
def test_frames_are_closer_at_the_beginning(
    iterations: int, num_frames: int, expected: set[int]
) -> None:
    assert frame_iterations(iterations, num_frames) == expected


def evaluating(images: Path) -> Params:
    """Return the settings with images from elsewhere."""
    evaluate = dataclasses.replace(PARAMS.evaluate, images=str(images))
    return dataclasses.replace(PARAMS, evaluate=evaluate)


def test_images_from_elsewhere_have_no_snapshots(tmp_path: Path) -> None:
    tasks = list_tasks(evaluating(tmp_path / "set.pt"), "mlp")
    assert tasks == [(0, i) for i in range(PARAMS.evaluate.by_network["mlp"].num_networks)]


@pytest.mark.parametrize("size", [16, 8])
def test_images_from_elsewhere_have_to_fit(
    size: int, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """They come in the scale of the real images; another size is refused."""
    pixels = torch.rand(3, 1, size, size)
    path = tmp_path / "set.pt"
    torch.save([pixels, torch.arange(3)], path)
    if size == 8:
        with pytest.raises(
            ValueError, match=r"evaluate\.images: .*set\.pt .*\(1, 8, 8\); the data"
        ):
            load_sets(evaluating(path), {0}, tiny_dataset)
        return
    ((found,),) = load_sets(evaluating(path), {0}, tiny_dataset).values()
    torch.testing.assert_close(found.images, (pixels - 0.5) / 0.3)
