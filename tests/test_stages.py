"""The pieces of the stage scripts that are not in a module."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from condensation.artefacts import read_synthetic_set, set_path
from condensation.augmentation import AUGMENTATIONS
from condensation.datasets import Dataset
from condensation.distances import DISTANCES
from condensation.image_sets import ImageSet, is_folder, load_image_set
from condensation.loops import MOST_EPOCHS
from condensation.params import Params, load_params
from condensation.precisions import PRECISIONS, Precisions
from condensation.training import train
from condense import augmentation_name, frame_iterations
from conftest import ROOT
from evaluate import list_tasks, load_sets, misjudged, spread
from workspace import make_workspace, run_here, write_ceiling, write_params

IMAGES = ImageSet(
    torch.zeros(1, 1, 2, 2),
    torch.zeros(1, dtype=torch.int64),
    torch.zeros(1),
    torch.ones(1),
    ("0",),
)
PARAMS = load_params(ROOT / "params.yaml")


def of_distance(ipc: int, distance: str) -> Params:
    condense = dataclasses.replace(PARAMS.condense, distance=distance)
    return dataclasses.replace(PARAMS, ipc=ipc, condense=condense)


@pytest.mark.parametrize(
    "ipc, expected",
    [
        *[(1, (1, 1)), (10, (10, 50)), (20, (20, 25)), (30, (30, 20)), (40, (40, 15))],
        *[(50, (50, 10)), (2, (2, 6)), (7, (7, 34)), (25, (25, 22)), (100, (50, 10))],
    ],
)
@pytest.mark.parametrize("distance", DISTANCES)
def test_loops_are_the_published_ones_or_between_them(
    distance: str, ipc: int, expected: tuple[int, int]
) -> None:
    outer, inner = expected
    if distance in MOST_EPOCHS:
        inner = min(inner, MOST_EPOCHS[distance])
    assert of_distance(ipc, distance).loops == (outer, inner)


def test_training_between_image_steps_is_short_where_the_distance_has_no_bound() -> None:
    assert MOST_EPOCHS.keys() <= DISTANCES.keys()
    assert of_distance(10, "layerwise_cosine").loops == (10, 50)
    assert of_distance(10, "squared_euclidean").loops == (10, 10)
    assert of_distance(1, "squared_euclidean").loops == (1, 1)


def test_each_class_may_have_a_number_of_images_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through all stages."""
    numbers = {"two": 1, "zero": 2, "one": 12}
    changes = {"ipc": numbers, "sets": 2, "evaluate.networks": ["mlp"], "render.dpi": 30}
    folder = make_workspace(tmp_path, **changes)
    stages = ("baseline --network mlp", "initialize", "condense", "evaluate --network mlp")
    for stage in (*stages, "render"):
        run_here(folder, stage, monkeypatch)
    condensed = read_synthetic_set(set_path(folder / "data/condensed", 1))
    assert condensed.counts == (2, 12, 1) and condensed.images.shape == (15, 1, 16, 16)
    pictures = folder / "data/condensed/images"
    assert [len([*each.iterdir()]) for each in sorted(pictures.iterdir())] == [2, 12, 1]
    report = (folder / "results/report.md").read_text()
    assert "condensed to 15 synthetic images, of each class its own number" in report
    assert (folder / "results/figures/animation.gif").stat().st_size > 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ipc": {"zero": 1, "one": 1, "tow": 1}}, "ipc: unknown class 'tow'; the dataset has"),
        ({"ipc": {"zero": 1, "two": 1}}, "ipc: has no number for class 'one'; takes one for every"),
        (
            {"ipc": {"zero": 1, "one": 21, "two": 1}, "init": "real"},
            "ipc: got 1 to 21, with init real: class 'one': has 20 images, fewer than the 21 asked",
        ),
        (
            {"ipc": {"zero": 22, "one": 1, "two": 21}, "init": "real"},
            "init real: class 'zero': has 20 images, .* 22 asked for; class 'two': has 20 images",
        ),
    ],
)
def test_numbers_that_do_not_fit_the_classes(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_workspace(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        run_here(folder, "initialize", monkeypatch)
    assert not (folder / "data/initial").exists()


ALL_OF_MLP = ("baseline --network mlp", "initialize", "condense", "evaluate --network mlp")


def test_a_ceiling_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no part of it that is retained."""
    folder = make_workspace(tmp_path, **{"evaluate.networks": ["mlp"], "render.dpi": 30})
    for stage in ALL_OF_MLP[:3]:
        run_here(folder, stage, monkeypatch)
    write_ceiling(folder, 0.0)
    run_here(folder, ALL_OF_MLP[3], monkeypatch)
    assert capsys.readouterr().out.endswith(", the ceiling is 0.0%\n")
    metrics = json.loads((folder / "results/evaluate/mlp/metrics.json").read_text())
    assert metrics["mlp"]["retained"] is None and metrics["mlp"]["accuracy"] > 0
    run_here(folder, "render", monkeypatch)
    assert "| 0.00 (n = 1) |  |" in (folder / "results/report.md").read_text()


def test_more_than_the_ceiling_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_workspace(tmp_path, **{"evaluate.networks": ["mlp"]})
    for stage in ALL_OF_MLP[1:3]:
        run_here(folder, stage, monkeypatch)
    for ceiling, more in ((1.0, True), (100.0, False)):
        write_ceiling(folder, ceiling)
        run_here(folder, ALL_OF_MLP[3], monkeypatch)
        said = capsys.readouterr().out
        assert f"% of the ceiling {ceiling}%\n" in said
        assert said.endswith("mend it: baseline.mlp.epochs, baseline.min_steps\n") == more


@pytest.mark.parametrize("min_steps, epochs", [(0, 2), (18, 2), (19, 3), (50, 6)])
def test_on_small_data_the_ceiling_is_trained_for_more_epochs(
    min_steps: int, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 60 images in batches of 7: 9 steps an epoch."""
    folder = make_workspace(tmp_path, **{"baseline.min_steps": min_steps})
    taken = []

    def noted(*arguments: Any, **settings: Any) -> Any:
        taken.append(settings["epochs"])
        return train(*arguments, **settings)

    monkeypatch.setattr("baseline.train", noted)
    run_here(folder, "baseline --network mlp", monkeypatch)
    assert taken == [epochs] * 3


@pytest.mark.parametrize(
    "learned, changes, said",
    [
        ("dsa", {}, "condense.augmentation dsa, and networks are trained"),
        ("dsa_without_flip", {}, "augmentation dsa_without_flip,"),
        ("dsa", {"evaluate.protocol": "dsa"}, ""),
        ("dsa", {"evaluate.augmentation": "none"}, ""),
        ("none", {}, ""),
    ],
)
def test_augmented_images_that_are_judged_without_are_told_of(
    learned: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_params(tmp_path, changes)
    sets = {0: [IMAGES], 4: [dataclasses.replace(IMAGES, augmentation=learned)]}
    text = misjudged(load_params(tmp_path / "params.yaml"), sets)
    assert said in text and bool(said) == bool(text)


@pytest.mark.parametrize(
    "given, learned", [("auto", "dsa"), ("dsa_without_flip",) * 2, ("none", "none")]
)
def test_condensed_images_say_how_they_were_learned(
    given: str, learned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"condense.augmentation": given, "dataset": "fashion_mnist"}
    folder = make_workspace(tmp_path, **changes)
    for stage in ("initialize", "condense"):
        run_here(folder, stage, monkeypatch)
    condensed = folder / "data/condensed"
    for path in (set_path(condensed, 0), set_path(condensed, 0, 2)):
        assert load_image_set(path).augmentation == learned
    assert load_image_set(set_path(folder / "data/initial", 0)).augmentation == "none"


def test_a_class_without_a_validation_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of one training image: it has no accuracy, in tables and figures alike."""
    changes = {"split": "validation", "evaluate.networks": ["mlp"], "render.dpi": 30}
    folder = make_workspace(tmp_path, **changes)
    np.save(folder / "data/prepared/validation_index.npy", np.array([1, 2, 4, 5]))
    for stage in (*ALL_OF_MLP, "render"):
        run_here(folder, stage, monkeypatch)
    zero, one, _ = (folder / "results/evaluate/mlp/classes.csv").read_text().splitlines()[1:]
    assert zero == "mlp,zero,,,3" and re.fullmatch(r"mlp,one,[\d.]+,[\d.]+,3", one)
    report = (folder / "results/report.md").read_text()
    assert "| zero |  |" in report and "nan" not in report


def test_coresets_are_chosen_by_pixels_or_by_what_the_network_makes_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {}
    for features in ("pixels", "embedding"):
        changes = {"init": "herding", "initialize.features": features}
        folder = make_workspace(tmp_path / features, **changes)
        run_here(folder, "initialize", monkeypatch)
        chosen[features] = read_synthetic_set(set_path(folder / "data/initial", 0)).images
    assert not torch.equal(*chosen.values())


def test_loops_that_are_set_are_taken() -> None:
    condense = dataclasses.replace(PARAMS.condense, outer=3, inner=0)
    assert dataclasses.replace(PARAMS, ipc=10, condense=condense).loops == (3, 0)


@pytest.mark.parametrize(
    "name, dataset, expected",
    [
        ("none", "mnist", "none"),
        (None, "mnist", "dsa_without_flip"),
        (None, "svhn", "dsa_without_flip"),
        (None, "fashion_mnist", "dsa"),
        (None, "/some/folder", "dsa"),
        ("dsa", "mnist", "dsa"),
    ],
)
def test_digits_are_not_flipped_of_themselves(
    name: str | None, dataset: str, expected: str
) -> None:
    condense = dataclasses.replace(PARAMS.condense, augmentation=name)
    assert (
        augmentation_name(dataclasses.replace(PARAMS, dataset=dataset, condense=condense))
        == expected
    )


def test_final_images_are_evaluated_with_the_full_number_and_snapshots_with_fewer() -> None:
    condense = dataclasses.replace(PARAMS.condense, iterations=9, snapshots=(0, 4, 9))
    numbers = dataclasses.replace(
        PARAMS.evaluate.by_network["mlp"], num_networks=3, snapshot_networks=2
    )
    evaluate = dataclasses.replace(PARAMS.evaluate, by_network={"mlp": numbers})
    sets: dict[int, list[ImageSet]] = {iteration: [IMAGES] * 2 for iteration in (0, 4, 9)}
    tasks = list_tasks(
        dataclasses.replace(PARAMS, condense=condense, evaluate=evaluate), "mlp", sets
    )
    earlier = [(i, k, n) for i in (0, 4) for k in range(2) for n in range(2)]
    assert tasks == [(9, k, n) for k in range(2) for n in range(3)] + earlier


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


def test_images_from_elsewhere_have_no_snapshots() -> None:
    tasks = list_tasks(PARAMS, "mlp", {0: [IMAGES]})
    assert tasks == [(0, 0, n) for n in range(PARAMS.evaluate.by_network["mlp"].num_networks)]


@pytest.mark.parametrize("size", [28, 8])
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
            load_sets(evaluating(path), "mlp", tiny_dataset)
        return
    ((found,),) = load_sets(evaluating(path), "mlp", tiny_dataset).values()
    torch.testing.assert_close(found.images, (pixels - 0.5) / 0.3)


def test_images_from_elsewhere_are_of_the_same_classes(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(make_workspace(tmp_path), "initialize", monkeypatch)
    path = tmp_path / "data/initial/synthetic.safetensors"
    shape = (1, 16, 16)
    other = dataclasses.replace(
        tiny_dataset,
        images=torch.zeros(3, *shape, dtype=torch.uint8),
        class_names=("zero", "one", "three"),
    )
    message = (
        r"has 3 classes 'zero', 'one', 'two' and images \(1, 16, 16\); the dataset has 3 classes "
        r"'zero', 'one', 'three' and"
    )
    with pytest.raises(ValueError, match=message):
        load_sets(evaluating(path), "mlp", other)


def test_a_folder_of_images_may_have_a_dot_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "condensed.1"
    assert not is_folder(folder)
    folder.mkdir()
    assert is_folder(folder)


@pytest.mark.parametrize("order", [1, 2])
def test_augmentation_changes_the_images_and_is_said(
    order: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = {}
    for name in ("none", "dsa"):
        folder = make_workspace(
            tmp_path / name, order=order, **{"condense.augmentation": name, "condense.outer": 2}
        )
        for stage in ("initialize", "condense"):
            run_here(folder, stage, monkeypatch)
        learned[name] = read_synthetic_set(folder / "data/condensed/synthetic.safetensors")
        card = (folder / "data/condensed/README.md").read_text()
        assert f"- augmentation: {name}\n" in card and card.count("augmentation:") == 1
    assert not torch.equal(learned["none"].images, learned["dsa"].images)
    assert {name: made.metadata["augmentation"] for name, made in learned.items()} == {
        "none": "none",
        "dsa": "dsa",
    }


@pytest.mark.parametrize("key", Precisions._fields)
def test_a_precision_changes_the_images_and_is_said(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = {}
    for name in PRECISIONS:
        folder = make_workspace(
            tmp_path / name, order=1, **{f"condense.{key}": name, "condense.outer": 2}
        )
        for stage in ("initialize", "condense"):
            run_here(folder, stage, monkeypatch)
        learned[name] = read_synthetic_set(folder / "data/condensed/synthetic.safetensors")
        card = (folder / "data/condensed/README.md").read_text()
        assert (f"- {key}: bfloat16\n" in card) == (name == "bfloat16")
        said = {key: name} if name == "bfloat16" else {}
        assert said.items() <= learned[name].metadata.items()
    exact, rounded = (made.images for made in learned.values())
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)


def test_between_image_steps_the_network_is_trained_as_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "condense.network_precision": "bfloat16",
        "condense.network_batch_size": 5,
        "condense.network_learning_rate": 0.03,
        "condense.augmentation": "dsa",
        "condense.iterations": 2,
        "condense.outer": 3,
        "condense.inner": 4,
        "sets": 2,
    }
    expected = {
        **{"compiled": False, "recorded": False, "in_parts": True, "autocast": torch.bfloat16},
        **{"epochs": 4, "batch_size": 5, "learning_rate": 0.03, "momentum": 0, "weight_decay": 0},
        "augmentation": AUGMENTATIONS["dsa"],
    }
    folder = make_workspace(tmp_path, **changes)
    taken = []

    def noted(*arguments: Any, **settings: Any) -> Any:
        taken.append({key: settings[key] for key in expected})
        assert "schedule" not in settings
        return train(*arguments, **settings)

    monkeypatch.setattr("condense.train", noted)
    for stage in ("initialize", "condense"):
        run_here(folder, stage, monkeypatch)
    assert taken == [expected] * (2 * 2 * 2)  # iterations, image steps but the last, sets


def test_of_a_network_that_is_not_trained_no_precision_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_workspace(
        tmp_path, **{"condense.network_precision": "bfloat16", "condense.outer": 1}
    )
    for stage in ("initialize", "condense"):
        run_here(folder, stage, monkeypatch)
    made = read_synthetic_set(folder / "data/condensed/synthetic.safetensors")
    assert "network_precision" not in made.metadata
    assert "network_precision" not in (folder / "data/condensed/README.md").read_text()
