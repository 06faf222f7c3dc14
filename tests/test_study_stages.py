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


@pytest.mark.parametrize("study", [pytest.param(path, id=path.name) for path in STUDIES])
def test_an_arm_is_measured_alone(study: Path, tmp_path: Path) -> None:
    """One that is added, or whose settings change, leaves what the others have measured."""
    place = tmp_path / study.relative_to(ROOT)
    shutil.copytree(study, place)
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__py*"))
    Repo.init(str(tmp_path), no_scm=True).close()
    before = stale(tmp_path)
    settings: dict[str, Any] = yaml.safe_load((place / "params.yaml").read_text())
    measured = [key for key in settings["arms"] if f"cell@{key}" not in before]
    assert measured, "nothing of the study is current"
    changed, pattern = measured[-1], settings["arms"][measured[0]]
    settings["arms"][changed]["seed"] = 7
    settings["arms"]["another"] = {**pattern, "label": "another", "seed": 8}
    (place / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    own = {f"{stage}@{arm}" for stage in ("tune", "cell") for arm in (changed, "another")}
    assert stale(tmp_path) - before == own | ({"summarize"} - before)
