"""Memory for larger data: images stay uint8, and never is a whole dataset held as floats.

The long form is as large as Tiny ImageNet, measures each stage, and is marked slow.
"""

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from condensation import datasets, real_images, training
from condensation.datasets import normalised
from conftest import ROOT
from workspace import make_workspace, run_here, write_params

STAGES = ("initialize", "condense", "baseline --network mlp", "evaluate --network mlp")
CLASS = 20
"""Images of a class in the workspace, of 60 training and 30 test images."""


@pytest.mark.parametrize("init", ["mean", "kmeans", "herding", "kmeans_centers"])
def test_no_stage_normalises_a_whole_dataset(
    init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most a class at once."""
    largest = [0]

    def noted(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        largest[0] = max(largest[0], len(images))
        return normalised(images, mean, std)

    for module in (datasets, real_images):
        monkeypatch.setattr(module, "normalised", noted)
    monkeypatch.setitem(training.ACCURACY_BLOCK, "cpu", 10)
    monkeypatch.setattr("baseline.BATCH_NORM_IMAGES", 10)
    folder = make_workspace(tmp_path, init=init, order=1, **{"condense.real_per_class": 60})
    for stage in STAGES if init == "mean" else STAGES[:1]:
        largest[0] = 0
        run_here(folder, stage, monkeypatch)
        assert 0 < largest[0] <= CLASS, stage


# As large as Tiny ImageNet

NUM_CLASSES, PER_CLASS, NUM_TEST = 200, 500, 10_000
LIMIT = 4.0
"""GiB of the host's memory that every stage gets by with."""

RUN = """
import importlib, re, sys
from condensation import tiny_imagenet
from condensation.downloads import RemoteFile
path, digest, stage, *arguments = sys.argv[1:]
tiny_imagenet.TINY_IMAGENET_FILES = (RemoteFile(path, "", digest),)
sys.argv = [stage, *arguments]
importlib.import_module(stage).main()
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
"""Runs a stage and prints the most memory it had, in KiB."""


def make_archive(folder: Path) -> str:
    """Write an archive like the published one, of noise; return its md5."""
    pictures = []
    for seed in range(50):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG")
        pictures.append(content.getvalue())
    numbers = [f"n{index:08d}" for index in range(NUM_CLASSES)]
    test = [f"val_{index}.JPEG\t{numbers[index % NUM_CLASSES]}\t0" for index in range(NUM_TEST)]
    path = folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        top = "tiny-imagenet-200"
        archive.writestr(f"{top}/wnids.txt", "\n".join(numbers))
        archive.writestr(f"{top}/words.txt", "\n".join(f"{n}\tthing {n}" for n in numbers))
        archive.writestr(f"{top}/val/val_annotations.txt", "\n".join(test))
        for index in range(NUM_TEST):
            archive.writestr(f"{top}/val/images/val_{index}.JPEG", pictures[index % 50])
        for number in numbers:
            for index in range(PER_CLASS):
                name = f"{top}/train/{number}/images/{number}_{index}.JPEG"
                archive.writestr(name, pictures[(index + int(number[1:])) % 50])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


LARGE: dict[str, Any] = {
    "dataset": "tiny_imagenet",
    "prepare.raw": ".",
    "order": 1,
    "networks.mlp.width": 16,
    "condense.iterations": 2,
    "condense.outer": 1,
    "condense.snapshots": [0],
    "condense.real_per_class": 256,
    "evaluate.networks": ["mlp"],
    "evaluate.epochs": 2,
    "evaluate.mlp.num_networks": 1,
    "evaluate.mlp.snapshot_networks": 0,
    "baseline.min_steps": 0,
    "baseline.batch_size": 256,
    "baseline.mlp.num_networks": 1,
    "baseline.mlp.epochs": 1,
    "baseline.mlp.learning_rate": 0.001,
}


OF_NETWORK: dict[str, dict[str, Any]] = {
    "mlp": {"network": "mlp"},
    "convnet": {  # in full; it takes its images in blocks, so that few tell what many would
        "network": "convnet",
        "networks.convnet.width": 128,
        "networks.convnet.depth": 3,
        "condense.iterations": 1,
        "condense.real_per_class": 64,
        "evaluate.networks": ["convnet"],
        "evaluate.convnet.num_networks": 1,
        "evaluate.convnet.snapshot_networks": 0,
    },
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with an archive, and its md5."""
    folder = tmp_path_factory.mktemp("large")
    # A ConvNet's ceiling takes an hour: here it is a number for `evaluate` to read.
    ceiling = folder / "results/baseline/convnet/metrics.json"
    ceiling.parent.mkdir(parents=True)
    ceiling.write_text('{"convnet": {"ceiling": 50.0}}')
    return folder, make_archive(folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measured by way of /proc")
@pytest.mark.parametrize(
    "stage, init, split, network",
    [
        ("prepare", "mean", "test", "mlp"),
        ("initialize", "herding", "test", "mlp"),
        *((stage, "mean", "validation", "mlp") for stage in STAGES),
        ("condense", "mean", "validation", "convnet"),
        ("evaluate --network convnet", "mean", "validation", "convnet"),
    ],
)
def test_tiny_imagenet_in_four_gibibytes(
    stage: str,
    init: str,
    split: str,
    network: str,
    large: tuple[Path, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each stage goes on from what the one before it wrote."""
    folder, digest = large
    write_params(folder, {**LARGE, "init": init, "ipc": 1, "split": split, **OF_NETWORK[network]})
    ran = subprocess.run(
        [sys.executable, "-c", RUN, "tiny-imagenet-200.zip", digest, *stage.split()],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT / "stages"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    used = int(ran.stdout.split()[-1]) / 2**20
    with capsys.disabled():
        print(f"\n{stage}, init {init}, split {split}, network {network}: {used:.2f} GiB")
    assert used < LIMIT
