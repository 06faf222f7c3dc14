"""What the stages take from their settings: which real images they see, and how they train."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from condensation.artefacts import set_path
from condensation.augmentation import AUGMENTATIONS
from condensation.image_sets import load_image_set
from condensation.networks import Theta
from condensation.training import tenth_after_half, train, train_together, warm_up_and_decay
from workspace import make_workspace, outputs, run_here, write_ceiling

ALL_OF_MLP = ("initialize", "condense", "baseline --network mlp", "evaluate --network mlp")
QUICK: dict[str, Any] = {
    "evaluate.networks": ["mlp"],
    "condense.iterations": 2,
    "condense.snapshots": [0],
}
LEARNING: dict[str, Any] = {
    "baseline.mlp.epochs": 8,
    "evaluate.epochs": 20,
    "evaluate.learning_rate": 0.1,
}
"""Far enough for accuracies to tell one thing from another."""
OF_TRAINING = ("epochs", "batch_size", "learning_rate", "momentum", "weight_decay", "augmentation")
LEARNED = {"data/initial", "data/condensed", "results/condense"}
SCORED = {"results/baseline", "results/evaluate"}


def invert(folder: Path, part: str) -> None:
    """Turn the pixels of the validation part, or of the test set, into their negatives."""
    prepared = folder / "data/prepared"
    path = prepared / f"{'test' if part == 'test' else 'train'}_images.npy"
    pixels = np.load(path)
    chosen = slice(None) if part == "test" else np.load(prepared / "validation_index.npy")
    pixels[chosen] = 255 - pixels[chosen]
    np.save(path, pixels)


def folder_of(name: str) -> str:
    """Return the first two parts of the name of an output."""
    return "/".join(name.split("/")[:2])


@pytest.mark.parametrize(
    "split, part, init, seen_by",
    [
        ("validation", "validation", "mean", SCORED),
        ("validation", "test", "mean", set()),
        ("test", "validation", "mean", LEARNED | SCORED),
        ("test", "validation", "noise", LEARNED - {"data/initial"} | SCORED),
        ("test", "test", "mean", SCORED),
    ],
)
def test_what_is_held_out_changes_no_byte_of_what_is_learned(
    split: str,
    part: str,
    init: str,
    seen_by: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And with the validation split, nothing sees the test set."""
    written = []
    for name in ("as they are", "inverted"):
        changes: dict[str, Any] = {**QUICK, **LEARNING, "split": split, "init": init}
        folder = make_workspace(tmp_path / name, **changes)
        if name == "inverted":
            invert(folder, part)
        for stage in ALL_OF_MLP:
            run_here(folder, stage, monkeypatch)
        written.append(outputs(folder))
    ours, theirs = written
    assert ours.keys() == theirs.keys() and {*map(folder_of, ours)} == LEARNED | SCORED
    assert {folder_of(name) for name in ours if ours[name] != theirs[name]} == seen_by


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_ceiling_is_learned_without_what_is_held_out(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[Theta] = []

    def noted(*arguments: Any, **settings: Any) -> Theta:
        learned.append(train(*arguments, **settings))
        return learned[-1]

    monkeypatch.setattr("baseline.train", noted)
    for name in ("as they are", "inverted"):
        changes = {"split": split, "baseline.mlp.num_networks": 1}
        folder = make_workspace(tmp_path / name, **QUICK, **changes)
        if name == "inverted":
            invert(folder, "validation")
        run_here(folder, "baseline --network mlp", monkeypatch)
    ours, theirs = learned
    same = [torch.equal(value, theirs[key]) for key, value in ours.items()]
    assert all(same) if split == "validation" else not any(same)


def noting(function: Callable[..., Any], taken: list[tuple[tuple[Any, ...], Any]]) -> Any:
    """Return the function, which notes what it is given."""

    def noted(*arguments: Any, **settings: Any) -> Any:
        taken.append((arguments, settings))
        return function(*arguments, **settings)

    return noted


def how(settings: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a network was trained with."""
    return tuple(settings[key] for key in (*OF_TRAINING, "schedule"))


def test_ceilings_are_trained_as_the_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each from parameters of its own."""
    changes: dict[str, Any] = {
        "baseline.batch_size": 5,
        "baseline.momentum": 0.6,
        "baseline.weight_decay": 0.002,
        "baseline.mlp.num_networks": 2,
        "baseline.mlp.epochs": 3,
        "baseline.mlp.learning_rate": 0.03,
        "baseline.mlp.augmentation": "shift",
    }
    taken: list[tuple[tuple[Any, ...], Any]] = []
    monkeypatch.setattr("baseline.train", noting(train, taken))
    run_here(make_workspace(tmp_path, **changes), "baseline --network mlp", monkeypatch)
    expected = (3, 5, 0.03, 0.6, 0.002, AUGMENTATIONS["shift"], warm_up_and_decay)
    assert [how(settings) for _, settings in taken] == [expected] * 2
    (first, *_), (second, *_) = (arguments for arguments, _ in taken)
    assert not any(torch.equal(value, second[key]) for key, value in first.items())


AUTO = {f"evaluate.{key}": "auto" for key in OF_TRAINING}


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {
                "evaluate.epochs": 3,
                "evaluate.batch_size": 5,
                "evaluate.learning_rate": 0.03,
                "evaluate.momentum": 0.6,
                "evaluate.weight_decay": 0.002,
                "evaluate.augmentation": "shift",
            },
            (3, 5, 0.03, 0.6, 0.002, "shift"),
        ),
        ({**AUTO, "dataset": "fashion_mnist"}, (300, 256, 0.01, 0.9, 0.0005, "none")),
        (
            {**AUTO, "evaluate.protocol": "dsa", "evaluate.epochs": 2},
            (2, 256, 0.01, 0.9, 0.0005, "dsa_without_flip"),
        ),
    ],
    ids=["own", "dc", "dsa"],
)
def test_networks_are_trained_on_their_images_as_the_protocol_or_the_settings_say(
    changes: dict[str, Any],
    expected: tuple[Any, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_workspace(tmp_path, **QUICK, **changes, sets=2)
    write_ceiling(folder, 90.0)
    taken: list[tuple[tuple[Any, ...], Any]] = []
    monkeypatch.setattr("evaluate.train_together", noting(train_together, taken))
    for stage in ("initialize", "condense", "evaluate --network mlp"):
        run_here(folder, stage, monkeypatch)
    *numbers, augmentation = expected
    wanted = (*numbers, AUGMENTATIONS[augmentation], tenth_after_half)
    assert {how(settings) for _, settings in taken} == {wanted}

    images = [each for arguments, _ in taken for each in arguments[2]]
    labels = [each for arguments, _ in taken for each in arguments[3]]
    tasks = [(2, k) for k in range(2) for _ in range(3)] + [(0, k) for k in range(2)]
    condensed = folder / "data/condensed"
    sets = [load_image_set(set_path(condensed, k, iteration)) for iteration, k in tasks]
    assert len(images) == len(sets)
    assert all(torch.equal(ours, each.images) for ours, each in zip(images, sets, strict=True))
    assert all(torch.equal(ours, each.labels) for ours, each in zip(labels, sets, strict=True))


def test_every_snapshot_is_judged_by_the_same_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same parameters and draws: where the images are the same, so is every accuracy."""
    changes: dict[str, Any] = {
        "sets": 2,
        "condense.snapshots": [0, 1],
        "evaluate.mlp.snapshot_networks": 3,
    }
    folder = make_workspace(tmp_path, **{**QUICK, **LEARNING, **changes})
    write_ceiling(folder, 90.0)
    run_here(folder, "initialize", monkeypatch)
    for k in range(2):
        for iteration in range(3):
            snapshot = set_path(folder / "data/condensed", k, iteration)
            snapshot.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(set_path(folder / "data/initial", k), snapshot)
    taken: list[tuple[tuple[Any, ...], Any]] = []
    monkeypatch.setattr("evaluate.train_together", noting(train_together, taken))
    run_here(folder, "evaluate --network mlp", monkeypatch)
    thetas = [theta for arguments, _ in taken for theta in arguments[0]]
    begun = [torch.cat([value.flatten() for value in theta.values()]).tolist() for theta in thetas]
    streams = [stream.initial_seed() for arguments, _ in taken for stream in arguments[4]]
    for each in (begun, streams):
        assert each == each[:6] * 3 and all(each.count(one) == 3 for one in each)

    _, *lines = (folder / "results/evaluate/mlp/networks.csv").read_text().splitlines()
    by_iteration: dict[str, list[list[str]]] = {}
    for _, number, *of_network in (line.split(",") for line in lines):
        by_iteration.setdefault(number, []).append(of_network)
    first, *others = by_iteration.values()
    assert others == [first, first] and len(first) == 6
