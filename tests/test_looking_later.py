"""What came of an iteration is looked at while the next ones run, with the same results."""

from pathlib import Path

import pytest
import torch

import condense
from condensation.artefacts import read_synthetic_set
from condensation.devices import HostCopies
from condensation.matching import Matched
from workspace import make_workspace, outputs, run_here

LATER = [1, 2]
FEW_KEPT = {"condense.iterations": 7, "condense.frames": 2, "condense.snapshots": [0]}
DIVERGING = {
    "condense.image_learning_rate": 1e30,
    "condense.image_schedule": "constant",
    "condense.outer": 1,  # it takes some iterations
}


@pytest.fixture
def initial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_workspace(tmp_path, sets=2, **FEW_KEPT)
    run_here(folder, "initialize", monkeypatch)
    return folder


def look_later(monkeypatch: pytest.MonkeyPatch, iterations: int) -> None:
    monkeypatch.setattr(condense, "LOOKED_AT_LATER", {"cpu": iterations})


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("seconds", ["60", "0"])
def test_the_results_are_the_same(
    initial: Path, later: int, seconds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few checkpoints or many, before each of which all is looked at."""
    run_here(initial, "condense", monkeypatch)
    expected = outputs(initial)
    assert {"results/condense/loss.csv", "results/condense/curvature.csv"} <= expected.keys()
    look_later(monkeypatch, later)
    monkeypatch.setenv("CHECKPOINT_SECONDS", seconds)
    run_here(initial, "condense", monkeypatch)
    assert outputs(initial) == expected


@pytest.mark.parametrize("later", LATER)
def test_it_goes_on_after_an_interruption(
    initial: Path, later: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(initial, "condense", monkeypatch)
    expected = outputs(initial)
    look_later(monkeypatch, later)
    monkeypatch.setenv("CHECKPOINT_SECONDS", "0")
    match, steps = condense.Run._match, iter(range(11))

    def until_it_breaks(run: condense.Run, image_step: int) -> Matched:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return match(run, image_step)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(condense.Run, "_match", until_it_breaks)
        run_here(initial, "condense", monkeypatch)
    assert [*initial.glob(".checkpoints/condense-*/images.state")]
    run_here(initial, "condense", monkeypatch)
    assert outputs(initial) == expected


@pytest.mark.parametrize("later", LATER)
def test_a_divergence_is_said_of_its_iteration_and_the_images_before_it_are_kept(
    tmp_path: Path, later: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for iterations in (0, later):
        look_later(monkeypatch, iterations)
        folder = make_workspace(tmp_path / f"{iterations}", **FEW_KEPT, **DIVERGING)
        run_here(folder, "initialize", monkeypatch)
        with pytest.raises(ValueError, match="not finite") as stop:
            run_here(folder, "condense", monkeypatch)
        message, _, kept = str(stop.value).rpartition(" are in ")
        images = read_synthetic_set(folder / kept).images
        assert images.isfinite().all() and Path(kept).name != "iteration-000000.safetensors"
        found.append((message, Path(kept).name, images.numpy().tobytes()))
    assert found[0] == found[1]


def test_copies_are_of_their_time() -> None:
    values = torch.ones(2, requires_grad=True)
    copies = HostCopies([values, values > 0])
    values.data.zero_()
    found, above = copies.wait()
    assert found.tolist() == [1, 1] and above.all() and not found.requires_grad


@pytest.mark.cuda
@pytest.mark.parametrize("order", [1, 2])
def test_on_cuda_the_same_seed_gives_the_same_bytes(
    order: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With graphs of image steps and of training, blocks' kernels, and copies on their way."""
    changes = {"device": "cuda", "compile": "on", "network": "convnet", "order": order, "sets": 2}
    folder = make_workspace(tmp_path, **changes, **FEW_KEPT)
    run_here(folder, "initialize", monkeypatch)
    found = []
    for _ in range(2):
        torch.compiler.reset()
        run_here(folder, "condense", monkeypatch)
        found.append(outputs(folder))
    assert found[0] == found[1]
