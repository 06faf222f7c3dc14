"""A folder in which the stages run within a second or two: tiny settings and a tiny dataset."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from condensation.datasets import Dataset, write_prepared
from condensation.files import write_json
from condensation.randomness import generator
from conftest import ROOT

NETWORKS = ("convnet", "mlp")
OUTPUTS = ("data/initial/*", "data/condensed/**/*", "results/*/**/*")
SMALL: dict[str, Any] = {
    "ipc": 2,
    "network": "mlp",
    "init": "noise",
    "order": 2,
    "device": "cpu",
    "networks.convnet.width": 4,
    "networks.convnet.depth": 2,
    "networks.mlp.width": 8,
    "baseline.min_steps": 0,
    "baseline.batch_size": 7,
    **{f"baseline.{network}.num_networks": 3 for network in NETWORKS},
    **{f"baseline.{network}.epochs": 2 for network in NETWORKS},
    "condense.iterations": 4,
    "condense.outer": 3,
    "condense.inner": 2,
    "condense.distance": "squared_euclidean",
    "condense.real_per_class": 5,
    "condense.image_learning_rate": 0.01,
    "condense.snapshots": [0, 2],
    "condense.curvature.weight": 0.001,
    "condense.curvature.probes": "rademacher",
    "condense.curvature.real_per_class": "auto",
    "condense.curvature.every": 1,
    "evaluate.networks": list(NETWORKS),
    "evaluate.epochs": 6,
    "evaluate.batch_size": 4,
    **{f"evaluate.{network}.num_networks": 3 for network in NETWORKS},
    **{f"evaluate.{network}.snapshot_networks": 1 for network in NETWORKS},
}


def change(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Change settings by their dotted keys."""
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[name] = value
    return values


def write_params(folder: Path, changes: dict[str, Any]) -> None:
    """Write the committed settings, made small and changed."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    text = yaml.safe_dump(change(values, {**SMALL, **changes}), sort_keys=False)
    (folder / "params.yaml").write_text(text)


def small_dataset(per_class: int, stream: str) -> Dataset:
    """Draw three classes of 16 x 16 pixels whose mean brightness differs."""
    labels = torch.arange(3).repeat(per_class)
    draw = generator(0, "small dataset", stream)
    pixels = torch.randint(0, 128, (len(labels), 1, 16, 16), generator=draw)
    pixels[:, :, 4:12, 4:12] += 40 * labels[:, None, None, None]
    statistics = (torch.tensor([0.3]), torch.tensor([0.2]))
    return Dataset(pixels.to(torch.uint8), labels, *statistics, ("zero", "one", "two"))


def make_workspace(folder: Path, **changes: Any) -> Path:
    """Make a folder with settings and prepared data."""
    folder.mkdir(parents=True, exist_ok=True)
    write_params(folder, changes)
    validation = torch.arange(6)
    train, test = small_dataset(20, "train"), small_dataset(10, "test")
    write_prepared(folder / "data/prepared", train, test, validation)
    return folder


def write_ceiling(folder: Path, ceiling: float) -> None:
    """Write what `evaluate` compares an MLP's accuracies with, as `baseline` would."""
    ceilings = {"ceiling": ceiling, "ceiling_std": None, "ceiling_n": 1}
    write_json(folder / "results/baseline/mlp/metrics.json", {"mlp": ceilings})


def stage_command(stage: str) -> list[str]:
    """Return the command of a stage, `evaluate --network mlp` for instance."""
    name, *arguments = stage.split()
    return [sys.executable, str(ROOT / f"stages/{name}.py"), *arguments]


def run_stage(folder: Path, stage: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a stage in a folder as a process of its own."""
    return subprocess.run(
        stage_command(stage),
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def run_here(folder: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a stage in a folder within this process, which is quicker; errors are raised."""
    name, *arguments = stage.split()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [f"stages/{name}.py", *arguments])
    importlib.import_module(name).main()


def outputs(folder: Path) -> dict[str, bytes]:
    """Return what the stages wrote there, hidden files too; the times are left out."""
    found = [path for pattern in OUTPUTS for path in folder.glob(pattern) if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if path.name != "timing.csv"
    }
