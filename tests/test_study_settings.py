"""The files of studies: those in the repository, and mistakes in them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from condensation.params import load_params
from condensation.study_settings import Arm, Study, changed, load_study
from conftest import ROOT

STUDIES = [
    load_study(path.parent) for path in sorted((ROOT / "results/studies").glob("*/params.yaml"))
]
ARMS = [
    pytest.param(study, arm, id=f"{study.folder.name}-{arm.key}")
    for study in STUDIES
    for arm in study.arms.values()
]
SMALL: dict[str, Any] = {
    "title": "Question",
    "reference": "noise",
    "base": {"ipc": 2, "init": "noise"},
    "tune": {"extensions": 1, "settings": {"sets": 2}, "grid": {"seed": [1, 2]}},
    "panels": {
        "small": {"title": "Small", "order": 2},
        "large": {"ipc": 9, "grid": {}, "tuning": {"ipc": 1}, "timed": False, "extensions": 0},
    },
    "arms": {
        "small-noise": {"panel": "small"},
        "small-mean": {"panel": "small", "init": "mean", "grid": {"seed": [3]}},
        "large-noise": {"panel": "large", "label": "other", "init": "real"},
    },
}


def write(folder: Path, **changes: Any) -> Path:
    """Write a small study with some sections changed."""
    (folder / "params.yaml").write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))
    return folder


@pytest.mark.parametrize(("study", "arm"), ARMS)
def test_settings_of_every_arm_are_taken(study: Study, arm: Arm, tmp_path: Path) -> None:
    """With the first value that is tuned, and with the settings of the tuning too."""
    committed = yaml.safe_load((ROOT / "params.yaml").read_text())
    for tuning in ({}, arm.tuning):
        first = {key: values[0] for key, values in arm.grid.items()}
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(changed(committed, {**arm.settings, **tuning, **first})))
        load_params(path)


@pytest.mark.parametrize("study", [pytest.param(s, id=s.folder.name) for s in STUDIES])
def test_every_panel_has_arms_and_a_reference(study: Study) -> None:
    for panel in study.panels:
        labels = [arm.label for arm in study.of_panel(panel)]
        assert len({*labels}) == len(labels) > 0
        assert study.reference is None or study.reference in labels, panel


@pytest.mark.parametrize("study", [pytest.param(s, id=s.folder.name) for s in STUDIES])
def test_results_are_those_of_the_arms(study: Study) -> None:
    """None is left of an arm that was removed."""
    found = [*study.folder.glob("cells/*"), *study.folder.glob("tuning/*")]
    assert {path.name.removesuffix(".csv") for path in found} <= {*study.arms}


def test_settings_are_put_together_in_layers(tmp_path: Path) -> None:
    study = load_study(write(tmp_path))
    assert study.arms["small-noise"].settings == {"ipc": 2, "init": "noise", "order": 2}
    assert study.arms["small-mean"].settings["init"] == "mean"
    assert study.arms["large-noise"].settings == {"ipc": 9, "init": "real"}
    assert [arm.label for arm in study.arms.values()] == ["noise", "mean", "other"]
    assert [arm.grid for arm in study.arms.values()] == [{"seed": [1, 2]}, {"seed": [3]}, {}]
    assert [arm.tuning for arm in study.arms.values()] == [{"sets": 2}] * 2 + [
        {"sets": 2, "ipc": 1}
    ]
    assert [arm.extensions for arm in study.arms.values()] == [1, 1, 0]
    assert study.panels == {"small": "Small", "large": "large"}
    assert study.untimed == {"large"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": {}}, "the study: arm: unknown; takes title, "),
        ({"tune": {"extension": 1}}, "tune: extension: unknown; takes extensions, "),
        (
            {"tune": {"settings": {"split": "test"}}},
            "split of its tuning: got test, takes validation",
        ),
        ({"tune": {"grid": {"seed": [2, 1]}}}, r"seed: got \[2, 1\], takes a list of numbers"),
        ({"arms": {"a": {"panel": "huge"}}}, r"arms.a.panel: got huge, takes small \| large"),
        ({"panels": {"a": {"timed": "no"}}}, "panels.a.timed: got 'no', takes true | false"),
        ({"arms": {"a": {}}}, "arms.a: panel: is missing"),
        ({"arms": {"a": None}}, "arms.a: got None, takes a section"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"params.yaml: .*{message}"):
        load_study(write(tmp_path, **changes))


@pytest.mark.parametrize("key", ["sed", "condense.sed", "seed.x", "condense"])
def test_only_settings_that_exist_are_changed(key: str) -> None:
    values = {"seed": 1, "condense": {"ipc": 1}}
    if key == "condense":
        assert changed(values, {"condense.ipc": 5})["condense"] == {"ipc": 5}
        assert values["condense"] == {"ipc": 1}
        return
    with pytest.raises(ValueError, match=f"{key}: there is no such setting"):
        changed(values, {key: 2})
