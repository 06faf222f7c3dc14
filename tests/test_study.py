"""A tiny study from its settings to its figures, by the stages' own scripts, in one process."""

import importlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from condensation import study_runs
from condensation.artefacts import read_synthetic_set, set_path
from condensation.study_records import decode_images, encode_images, read_cell
from condensation.study_runs import DivergedError, Run
from condensation.study_settings import digest
from conftest import ROOT
from study import main as study
from summarize import main as summarize
from workspace import SMALL, make_workspace

ARMS: dict[str, Any] = {
    "mlp-noise": {"panel": "mlp"},
    "mlp-mean": {"panel": "mlp", "init": "mean", "order": 1, "grid": {}},
    "mlp-real": {"panel": "mlp", "init": "real", "grid": {}},
}
RATE = "condense.image_learning_rate"
STUDY: dict[str, Any] = {
    "title": "A tiny question",
    "reference": "noise",
    "targets": [5],
    "base": {**SMALL, "evaluate.epochs": 2, "sets": 2, "condense.outer": 1},
    "tune": {
        "extensions": 1,
        "settings": {"evaluate.networks": ["mlp"], "condense.snapshots": []},
        "grid": {RATE: [0.01, 0.1]},
    },
    "panels": {"mlp": {"title": "MLP"}},
    "arms": ARMS,
    "published": {"noise": {"mlp": [70.5, 1.2], "convnet": [63.9, 6.5]}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the small dataset, in which two of three arms are tuned and measured."""
    home = make_workspace(tmp_path_factory.mktemp("study"))
    place = home / "results/studies/tiny"
    place.mkdir(parents=True)
    (place / "params.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_runs, "FOLDER", home / ".checkpoints/studies")
        patch.setattr(study_runs, "prepare", lambda values: home / "data/prepared")
        patch.chdir(home)
        for what, arm in [(w, a) for a in ("mlp-noise", "mlp-mean") for w in ("tune", "cell")]:
            patch.setattr("sys.argv", ["study.py", what, "results/studies/tiny", arm])
            study()
        patch.setattr("sys.argv", ["summarize.py", "results/studies/tiny"])
        summarize()
        yield place


def test_arms_at_once_have_their_data_prepared_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other waits until they are whole, and neither removes what the other is making."""
    prepared: list[Path] = []

    def prepare(folder: Path, values: dict[str, Any]) -> None:
        prepared.append(folder)
        (folder / "data/prepared").mkdir(parents=True)
        time.sleep(0.2)
        (folder / "finished").touch()

    monkeypatch.setattr(study_runs, "FOLDER", tmp_path)
    monkeypatch.setattr(study_runs, "_prepare", prepare)
    (tmp_path / f"prepared-{digest({'dataset': 'mnist', 'prepare': {}})}-old").mkdir()
    values: dict[str, Any] = {"dataset": "mnist", "prepare": {}, "ipc": 1}
    with ThreadPoolExecutor(3) as executor:
        futures = [executor.submit(study_runs.prepare, {**values, "ipc": k}) for k in range(3)]
        found = {future.result() for future in futures}
    assert found == {prepared[0] / "data/prepared"} and len(prepared) == 1
    assert (prepared[0] / "finished").exists()
    assert sorted(tmp_path.glob("prepared-*-*")) == prepared


def test_data_are_prepared_from_the_repository_s_in_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the stages have written in the repository is neither used nor changed."""
    home, draw = tmp_path / "repository", np.random.default_rng(0)
    written = [home / "data" / name for name in study_runs.OUTPUTS]
    for place in written:
        place.mkdir(parents=True)
    images = draw.integers(0, 256, (12, 16, 16), dtype=np.uint8)
    np.savez(home / "data/own.npz", images=images, labels=np.arange(12) % 2)
    monkeypatch.setattr(study_runs, "ROOT", home)
    monkeypatch.setattr(study_runs, "FOLDER", tmp_path / "studies")
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    prepared = study_runs.prepare({**values, "dataset": "./own.npz"})
    arrays = {f"{part}_{what}.npy" for part in ("train", "test") for what in ("images", "labels")}
    others = {"validation_index.npy", "statistics.json"}
    assert {path.name for path in prepared.iterdir()} == arrays | others
    place = prepared.parents[1]
    assert (place / "finished").exists() and place.parent == tmp_path / "studies"
    links = {path.name for path in (place / "data").iterdir() if path.is_symlink()}
    assert links == {"own.npz", "raw"} and not links & {*study_runs.OUTPUTS}
    assert not any([*each.iterdir()] for each in written)
    kept = np.concatenate([np.load(prepared / f"{part}_images.npy") for part in ("train", "test")])
    assert sorted(kept.reshape(12, -1).tolist()) == sorted(images.reshape(12, -1).tolist())


def test_the_tuning_is_written_down(folder: Path) -> None:
    table = pd.read_csv(folder / "tuning/mlp-noise.csv")
    assert table[RATE].tolist()[:2] in ([0.01, 0.1], [0.1, 0.01]) and len(table) == 3
    assert table["chosen"].notna().sum() == 1 and (table["n"] == 2).all()
    best = table.loc[table["chosen"].notna()].iloc[0]
    assert best["accuracy"] == table["accuracy"].max()
    record = json.loads((folder / "cells/mlp-noise/record.json").read_text())
    assert record["chosen"] == {RATE: best[RATE]}
    assert record["settings"]["condense"]["image_learning_rate"] == best[RATE]
    assert (folder / "tuning/mlp-mean.csv").read_text().startswith("accuracy,")


def test_a_cell_holds_every_network_and_where_it_comes_from(folder: Path) -> None:
    cell = read_cell(folder / "cells/mlp-noise")
    assert cell is not None
    counts = cell.accuracy.groupby(["network", "iteration"]).size().to_dict()
    assert counts == {(n, i): 6 if i == 4 else 2 for n in ("convnet", "mlp") for i in (0, 2, 4)}
    assert {*cell.accuracy["set"]} == {0, 1} and cell.images.shape == (3, 3, 1, 16, 16)
    assert cell.record["settings"]["split"] == "test"
    assert cell.record["protocols"] == {"convnet": "custom", "mlp": "custom"}
    assert len(cell.record["commit"]) == 40 and "CPU" in cell.record["device"]
    assert len(cell.curvature) == 4
    of_first_order = read_cell(folder / "cells/mlp-mean")
    assert of_first_order is not None and of_first_order.curvature.empty
    assert list(study_runs.FOLDER.iterdir()) == []


def test_seconds_are_those_of_one_set(folder: Path) -> None:
    cell = read_cell(folder / "cells/mlp-noise")
    assert cell is not None
    both = pd.read_csv(folder / "cells/mlp-noise/seconds.csv")["seconds"]
    initial = cell.record["seconds"]["initialize"]
    assert initial > 0 and cell.seconds["seconds"].tolist() == ((both + initial) / 2).tolist()


def test_tables_and_figures_tell_of_what_was_measured(folder: Path) -> None:
    text = (folder / "tables.md").read_text()
    assert "2 of 3 arms measured" in text and "Not measured: mlp-real." in text
    summary = pd.read_csv(folder / "summary.csv")
    assert {*summary["arm"]} == {"mlp-noise", "mlp-mean"} and len(summary) == 12
    paired = pd.read_csv(folder / "paired.csv")
    assert {*paired["arm"]} == {"mlp-mean"} and {*paired["by"]} == {"iteration", "seconds"}
    final = summary[(summary["network"] == "mlp") & (summary["iteration"] == 4)]
    means = final.set_index("label")["accuracy"]
    last = paired[(paired["network"] == "mlp") & (paired["by"] == "iteration")].iloc[-1]
    assert last["difference"] == pytest.approx(means["mean"] - means["noise"], abs=0.002)
    metrics = json.loads((folder / "metrics.json").read_text())["tiny"]["mlp-noise"]["mlp"]
    assert metrics["accuracy"] == pytest.approx(means["noise"], abs=0.006)
    assert (metrics["n"], metrics["sets"]) == (6, 2)
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == {
        *("accuracy", "seconds", "final", "loss", "curvature", "transfer", "images-mlp")
    }
    for path in (folder / "figures").glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width == 1170 and len(picture.convert("L").getcolors() or []) > 3


def test_warnings_are_part_of_the_tables(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(folder, tmp_path / "tiny", ignore=shutil.ignore_patterns("figures"))
    assert "Warnings" not in (place / "tables.md").read_text()
    header = "iteration,kind,classes,warning\n"
    rows = '3,far,"one, two",text\n5,far,zero,text\n4,explosion,,text\n'
    (place / "cells/mlp-noise/warnings.csv").write_text(header + rows)
    (place / "cells/mlp-mean/warnings.csv").unlink()  # as in cells of before they were kept
    monkeypatch.setattr("sys.argv", ["summarize.py", str(place)])
    summarize()
    text = (place / "tables.md").read_text()
    assert "| mlp-noise | pixels far from those of real images | 3 | 3 |" in text
    assert "| mlp-noise | the matching loss explodes |  | 4 |" in text


def test_a_panel_that_is_not_timed_shows_no_seconds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(folder, tmp_path / "tiny", ignore=shutil.ignore_patterns("figures"))
    untimed = {**STUDY, "panels": {"mlp": {"title": "MLP", "timed": False}}}
    (place / "params.yaml").write_text(yaml.safe_dump(untimed, sort_keys=False))
    monkeypatch.setattr("sys.argv", ["summarize.py", str(place)])
    summarize()
    assert pd.read_csv(place / "summary.csv")["seconds"].isna().all()
    assert {*pd.read_csv(place / "paired.csv")["by"]} == {"iteration"}
    text = (place / "tables.md").read_text()
    assert "Iterations to a mean accuracy of" in text and " s)" not in text and "nan" not in text
    names = {path.stem for path in (place / "figures").glob("*.png")}
    assert "accuracy" in names and "seconds" not in names


def test_the_same_arm_gives_the_same_cell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {
        path.name: path.read_bytes()
        for path in (folder / "cells/mlp-mean").iterdir()
        if path.name not in ("seconds.csv", "record.json")
    }
    monkeypatch.setattr("sys.argv", ["study.py", "cell", "results/studies/tiny", "mlp-mean"])
    study()
    assert before == {name: (folder / "cells/mlp-mean" / name).read_bytes() for name in before}


def test_a_run_goes_on_after_the_stages_that_are_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run({**SMALL, "sets": 1, "seed": 5})
    stages: list[str] = []
    script = study_runs.run_script

    def stopped_at_evaluation(place: Path, stage: str) -> None:
        stages.append(stage)
        if stage == "evaluate --network mlp" and len(stages) < 5:
            raise SystemExit(130)
        script(place, stage)

    monkeypatch.setattr(study_runs, "run_script", stopped_at_evaluation)
    with pytest.raises(SystemExit):
        run.complete()
    first = set_path(run.folder / "data/condensed", 0)
    learned = read_synthetic_set(first).images
    run.complete()
    assert stages == [
        *("initialize", "condense", "evaluate --network convnet"),
        *("evaluate --network mlp", "evaluate --network mlp"),
    ]
    assert read_synthetic_set(first).images.equal(learned)
    assert [row["status"] for row in run.attempts()] == [0, 0, 0, 1, 0]
    run.remove()


def test_a_stage_leaves_none_of_its_modules_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a run that is gone on with would not find its checkpoint, which is of the loaded code.
    stages = tmp_path.resolve() / "stages"
    (stages / "parts_here").mkdir(parents=True)
    (stages / "first.py").write_text("import alone_here\nfrom parts_here import one\n")
    for name in ("alone_here.py", "parts_here/__init__.py", "parts_here/one.py"):
        (stages / name).write_text("")
    monkeypatch.setattr(study_runs, "STAGES", stages)
    monkeypatch.syspath_prepend(stages)
    package = importlib.import_module("parts_here")
    before = set(sys.modules)
    study_runs.run_script(tmp_path, "first")
    assert sys.modules.keys() == before and not hasattr(package, "one")
    del sys.modules["parts_here"]


def test_what_diverges_and_what_is_wrong_are_told_apart(folder: Path) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        Run({**SMALL, "condense.image_learning_rate": 1e30}).complete()
    with pytest.raises(ValueError, match="init: got 'nois', takes") as wrong:
        Run({**SMALL, "init": "nois"}).complete()
    assert not isinstance(wrong.value, DivergedError)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_a_cell_are_a_picture(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, channels, 8, 8)).astype(np.uint8)
    assert np.array_equal(decode_images(encode_images(images)), images)
