"""A study's dvc.yaml: what `dvc repro` would run after an edit of its settings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo  # type: ignore[import-untyped]

from conftest import ROOT

STUDIES = sorted(path.parent for path in ROOT.glob("results/studies/*/dvc.lock"))


def stale(home: Path) -> set[str]:
    """Return the names of the stages that are not as dvc.lock says."""
    with Repo(str(home)) as repo:
        return {address.split(":")[-1] for address in repo.status()}


def without_code(place: Path) -> None:
    """Take the modules out of a study's stages: what they are now is not what is asked here."""
    for name in ("dvc.yaml", "dvc.lock"):
        values = yaml.safe_load((place / name).read_text())
        for stage in values["stages"].values():
            inner = stage.get("do", stage)
            inner["deps"] = [each for each in inner["deps"] if "stages/" not in str(each)]
        (place / name).write_text(yaml.safe_dump(values, sort_keys=False))


@pytest.mark.parametrize("study", [pytest.param(path, id=path.name) for path in STUDIES])
def test_an_arm_is_measured_alone(study: Path, tmp_path: Path) -> None:
    """One that is added, or whose settings change, leaves what the others have measured."""
    place = tmp_path / study.relative_to(ROOT)
    shutil.copytree(study, place)
    without_code(place)
    path = place / "params.yaml"
    settings: dict[str, Any] = yaml.safe_load(path.read_text())
    measured = [key for key in settings["arms"] if (place / "cells" / key).is_dir()]
    few = [*measured[:2], measured[-1]]  # as DVC takes its time for many
    settings["arms"] = {key: settings["arms"][key] for key in few}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    Repo.init(str(tmp_path), no_scm=True).close()
    before = stale(tmp_path)
    assert before <= {"summarize"}, "what was measured is not current"
    changed, pattern = few[-1], settings["arms"][few[0]]
    settings["arms"][changed]["seed"] = 7
    settings["arms"]["another"] = {**pattern, "label": "another", "seed": 8}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    own = {f"{stage}@{arm}" for stage in ("tune", "cell") for arm in (changed, "another")}
    assert stale(tmp_path) - before == own | ({"summarize"} - before)
