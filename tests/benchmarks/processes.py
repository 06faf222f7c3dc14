"""Iterations of the stage `condense` in one or several processes, as the stage counts them."""

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from benchmarks.measure import Run
from condensation.datasets import Dataset, write_prepared
from condensation.randomness import generator

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 6
"""The first is left out: what it takes to begin is in it."""


def numbers_of_processes(device: torch.device) -> tuple[str, ...]:
    """Return one, two, four ... processes, at most one for each core or accelerator."""
    most = torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1
    numbers = [2**power for power in range(10) if 2**power <= most]
    return tuple(f"{number} process{'es' if number > 1 else ''}" for number in numbers)


def run_of_processes(classes: int, real: int, number: int, device: torch.device) -> Run:
    """Return the run of the stage, which gives the mean seconds of an iteration.

    Args:
        classes: How many there are.
        real: Real images of each in a batch.
        number: Of processes.
        device: Of the stage.
    """

    def run() -> float:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _prepare(folder, classes, real)
            _write_params(folder, real, number, device)
            for stage in ("initialize", "condense"):
                command = [sys.executable, str(ROOT / f"stages/{stage}.py")]
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
            text = (folder / "results/condense/timing.csv").read_text()
            seconds = [float(row["seconds"]) for row in csv.DictReader(text.splitlines())]
        return (seconds[-1] - seconds[1]) / (ITERATIONS - 1)

    return run


def _prepare(folder: Path, classes: int, real: int) -> None:
    labels = torch.arange(classes).repeat_interleave(real)
    shape = (len(labels), 1, 28, 28)
    pixels = torch.randint(0, 256, shape, generator=generator(0, "pixels")).to(torch.uint8)
    statistics = (torch.tensor([0.5]), torch.tensor([0.3]))
    names = tuple(f"class {c}" for c in range(classes))
    dataset = Dataset(pixels, labels, *statistics, names)
    write_prepared(folder / "data/prepared", dataset, dataset, torch.arange(1))


def _write_params(folder: Path, real: int, number: int, device: torch.device) -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values |= {"ipc": 1, "sets": 1, "init": "noise", "order": 1, "device": device.type}
    values["compile"] = "on"  # as for a run that is long enough for `auto`
    values["condense"] |= {
        "iterations": ITERATIONS,
        "real_per_class": real,
        "processes": number,
        "snapshots": [0],
        "frames": 2 * ITERATIONS**2,  # every iteration is one
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
