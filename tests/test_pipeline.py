"""The real pipeline with tiny settings, in a repository of its own: what runs when, what comes out.

It is run once for the whole file; a test that changes the repository puts it back.
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from command_folder import CommandFolder
from condensation.artefacts import read_synthetic_set
from condensation.datasets import load_training, write_prepared
from condensation.randomness import generator
from conftest import HANGS, ROOT

NETWORKS = ("convnet", "mlp")
BASELINE = {f"baseline@{network}" for network in NETWORKS}
EVALUATE = {f"evaluate@{network}" for network in NETWORKS}
FROM_CONDENSE = {"condense", "render"} | EVALUATE
FROM_INITIALIZE = {"initialize"} | FROM_CONDENSE
IMAGES = ("synthetic", "start_and_end", "snapshots")
OF_CONDENSE = ("loss", "accuracy", "seconds")
OF_EVALUATE = ("retained", "classes", "confusion")
FIGURES = (*IMAGES, *OF_CONDENSE, *OF_EVALUATE)
REPORT = {"report.html", "report.md"}
ALL = {"prepare"} | BASELINE | FROM_INITIALIZE
TINY: dict[str, Any] = {
    "seed": 0,
    "ipc": 1,
    "network": "convnet",
    "init": "mean",
    "order": 1,
    "split": "test",
    "device": "cpu",
    "networks.convnet.width": 2,
    "networks.convnet.depth": 1,
    "networks.mlp.width": 8,
    "baseline.min_steps": 1,
    "baseline.batch_size": 4096,
    "baseline.convnet.num_networks": 1,
    "baseline.mlp.epochs": 1,
    "baseline.mlp.learning_rate": 0.05,
    "condense.iterations": 2,
    "condense.distance": "squared_euclidean",
    "condense.real_per_class": 8,
    "condense.image_learning_rate": 1.0,  # large, so that what changes images changes accuracies
    "condense.snapshots": [0, 1],
    "condense.curvature.weight": 1.0,
    "evaluate.networks": list(NETWORKS),
    "evaluate.epochs": 5,
    **{f"evaluate.{network}.num_networks": 2 for network in NETWORKS},
    **{f"evaluate.{network}.snapshot_networks": 1 for network in NETWORKS},
    "render.dpi": 40,
    "render.real_examples": 4,
}


OLD = 10**9
"""A time that no edit has, in seconds."""


def edit(path: Path, changes: dict[str, Any]) -> None:
    """Change settings of a params.yaml by their dotted keys; `...` removes a key."""
    values = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        if value is ...:
            del section[name]
        else:
            section[name] = value
    path.write_text(yaml.safe_dump(values, sort_keys=False))


class Repository(CommandFolder):
    """A folder with the pipeline, and the commands that a user runs in it."""

    def stages_run_by(self, *command: str) -> list[str]:
        """Run a command and return the stages that it ran, in order."""
        return re.findall(r"^Running stage '(.+)'", self.run(*command), re.MULTILINE)

    def json(self, *command: str) -> Any:
        """Return what a command prints as JSON."""
        return json.loads(self.run(*command, "--json"))

    def commit(self) -> None:
        """Commit everything."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "State of the pipeline")

    def changed(self) -> set[str]:
        """Return the files that Git sees as changed or new."""
        lines = self.run("git", "status", "--porcelain", "--untracked-files=all").splitlines()
        return {line[3:] for line in lines}

    def edit(self, **changes: Any) -> None:
        """Change settings by their dotted keys."""
        edit(self.folder / "params.yaml", changes)

    def put_back(self) -> None:
        """Return to the last commit, as the README says to.

        Git tells an edit by size and second where DVC, which stages `dvc.lock`, has written the
        index since: what is edited within the second of the restoration would count as unchanged.
        So what was restored is made old.
        """
        self.run("git", "restore", "--staged", "--worktree", ".")
        for name in ("params.yaml", "dvc.lock"):
            os.utime(self.folder / name, (OLD, OLD))
        self.run("git", "update-index", "--refresh")
        self.run("dvc", "checkout")
        assert self.changed() == set()

    def files(self, *patterns: str) -> dict[str, bytes]:
        """Return the content of files, by their paths."""
        found = sorted(path for pattern in patterns for path in self.folder.glob(pattern))
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in found
            if path.is_file()
        }


@pytest.fixture(scope="module")
def environment(
    command_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The environment of commands; what DVC notes about repositories goes with them."""
    notes = tmp_path_factory.mktemp("dvc")
    return {**command_environment, "DVC_SITE_CACHE_DIR": str(notes)}


@pytest.fixture(scope="module")
def finished(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Repository]:
    """The pipeline after its first run, with its results committed."""
    folder = tmp_path_factory.mktemp("repository")
    repository = Repository(folder, environment)
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = Repository(ROOT, environment).run(*listing).split("\0")
    for name in filter(None, names):
        result = name.startswith("results/") or name == "dvc.lock"
        if not result and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    edit(folder / "params.yaml", TINY)
    repository.run("git", "init", "--quiet", "--initial-branch", "main")
    repository.commit()
    assert set(repository.stages_run_by("dvc", "repro")) == ALL
    outside = {name for name in repository.changed() if not name.startswith("results/")}
    assert outside == {"dvc.lock"}, "a run leaves nothing else behind for Git to see"
    repository.commit()
    yield repository
    shutil.rmtree(folder)  # 130 MB


@pytest.fixture
def repository(finished: Repository) -> Iterator[Repository]:
    """The finished pipeline, to be changed by one test."""
    yield finished
    finished.put_back()


@pytest.fixture(scope="module")
def followers(finished: Repository) -> dict[str, set[str]]:
    """Which stages use the outputs of each stage."""
    found: dict[str, set[str]] = {}
    edges = re.findall(r'"(.+)" -> "(.+)"', finished.run("dvc", "dag", "--dot"))
    for before, after in edges:
        found.setdefault(before, set()).add(after)
    return found


def and_after(stages: set[str], followers: dict[str, set[str]]) -> set[str]:
    """Return stages and all that come after them."""
    after = {follower for stage in stages for follower in followers.get(stage, ())} - stages
    return and_after(stages | after, followers) if after else stages


def test_nothing_changed_runs_nothing(finished: Repository) -> None:
    assert finished.stages_run_by("dvc", "repro") == []
    assert finished.changed() == set()


RERUNS: dict[str, tuple[Any, set[str]]] = {
    "seed": (1, FROM_INITIALIZE),
    "ipc": (2, FROM_INITIALIZE),
    "ipc_shares": ("proportional", FROM_INITIALIZE),
    "init": ("noise", FROM_INITIALIZE),
    "network": ("mlp", FROM_INITIALIZE),
    "order": (2, FROM_CONDENSE),
    "split": ("validation", ALL - {"prepare"}),
    "networks.convnet.width": (3, {"baseline@convnet"} | FROM_INITIALIZE),
    "networks.mlp.width": (9, {"baseline@mlp", "evaluate@mlp", "render"}),
    "networks.lenet.activation": ("silu", {"render"}),  # not used here, but in the report
    "prepare.seed": (1, ALL),
    "baseline.seed": (1, BASELINE | EVALUATE | {"render"}),
    "baseline.min_steps": (0, BASELINE | EVALUATE | {"render"}),
    "baseline.mlp.learning_rate": (0.1, {"baseline@mlp", "evaluate@mlp", "render"}),
    "condense.distance": ("cosine", FROM_CONDENSE),
    "condense.snapshots": ([0], FROM_CONDENSE),
    "evaluate.networks": ([*NETWORKS, "lenet"], {"baseline@lenet", "evaluate@lenet", "render"}),
    "evaluate.epochs": (6, EVALUATE | {"render"}),
    "evaluate.protocol": ("dsa", EVALUATE | {"render"}),
    "networks.convnet.norm": ("batch", {"baseline@convnet"} | FROM_INITIALIZE),
    "evaluate.images_scale": ("pixels", EVALUATE | {"render"}),
    "evaluate.convnet.num_networks": (3, {"evaluate@convnet", "render"}),
    "render.real_examples": (5, {"render"}),
}
"""A setting -> another value of it, and the stages that have to run again."""


@pytest.mark.parametrize("key", RERUNS)
def test_what_a_changed_setting_makes_stale(
    finished: Repository, followers: dict[str, set[str]], key: str
) -> None:
    """The stages that DVC finds changed, and all that come after them."""
    value, expected = RERUNS[key]
    settings = finished.folder / "params.yaml"
    original = settings.read_text()
    finished.edit(**{key: value})
    try:
        assert and_after(set(finished.json("dvc", "status")), followers) == expected
    finally:
        # Not `git restore`: Git tells a later edit by size and second, and tests are quick.
        settings.write_text(original)


@pytest.mark.parametrize(
    "key, stages, results",
    [
        (
            "evaluate.mlp.num_networks",
            {"evaluate@mlp", "render"},
            {f"evaluate/mlp/{name}.csv" for name in ("classes", "confusion", "curve", "networks")}
            | {"evaluate/mlp/metrics.json", "evaluate/mlp/timing.csv", "accuracy.csv"}
            | {f"figures/{name}.png" for name in ("accuracy", "seconds", *OF_EVALUATE)}
            | {f"vector/{name}.pdf" for name in ("accuracy", "seconds", *OF_EVALUATE)}
            | REPORT,
        ),
        (
            "render.dpi",
            {"render"},
            {f"figures/{name}.png" for name in FIGURES} | REPORT,
        ),
    ],
    ids=["evaluate.mlp.num_networks", "render.dpi"],
)
def test_what_a_changed_setting_runs(
    repository: Repository, key: str, stages: set[str], results: set[str]
) -> None:
    """The same for real, with the results that change."""
    repository.edit(**{key: TINY[key] + 1})
    assert set(repository.stages_run_by("dvc", "repro")) == stages
    changed = {f"results/{name}" for name in results}
    assert repository.changed() == changed | {"params.yaml", "dvc.lock"}


def test_an_experiment_with_the_second_order(repository: Repository) -> None:
    """`dvc exp run -S` begins at the stage concerned; metrics and plots show what it changed."""
    ran = repository.stages_run_by("dvc", "exp", "run", "-S", "order=2")
    assert ran[0] == "condense" and set(ran) == FROM_CONDENSE
    (setting,) = repository.json("dvc", "params", "diff")["params.yaml"]
    assert setting == "order"

    metrics = repository.json("dvc", "metrics", "diff")
    changes = {name: change for file in metrics.values() for name, change in file.items()}
    assert {"condense.loss", *(f"{network}.accuracy" for network in NETWORKS)} <= changes.keys()
    assert all(change["old"] != change["new"] for change in changes.values())

    plots = repository.json("dvc", "plots", "diff")
    assert not plots.get("errors")
    titles = {"Test accuracy by network", "Test accuracy by seconds"}
    titles |= {"Matching loss", "Matching loss by class"}
    files = {f"{name}.png" for name in FIGURES} | {"animation.gif"}
    assert titles | {f"results/figures/{name}" for name in files} == plots["data"].keys()
    for title in titles:
        (plot,) = plots["data"][title]
        values = plot["content"]["data"]["values"]
        curves = {
            revision: [list(row.values())[:3] for row in values if row["rev"] == revision]
            for revision in ("HEAD", "workspace")
        }
        assert curves["HEAD"] and curves["HEAD"] != curves["workspace"]


OWN_CLASSES = {"7": 24, "NA": 9, "a, b": 5, "leaf": 3, "sky": 2}
"""Name -> number of images: names that a table may take for something else, and tiny classes."""


def test_own_colour_images_in_unbalanced_classes(repository: Repository, tmp_path: Path) -> None:
    """From a folder to the report, without a word of theirs in the repository.

    With a number of synthetic images for each class, and in a folder that DVC wants quotes for.
    """
    folder = tmp_path / "blüten (alt), 2"
    draw = generator(0, "own images")
    for label, (name, count) in enumerate(OWN_CLASSES.items()):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(count):
            pixels = torch.randint(0, 128, (14, 14, 3), generator=draw)
            pixels[:, :, label % 3] += 20 * label
            picture = Image.fromarray(pixels.byte().numpy())
            picture.save(folder / "train" / name / f"{number}.png")
    repository.edit(ipc={**dict.fromkeys(OWN_CLASSES, 1), "7": 3})
    ran = repository.stages_run_by("dvc", "exp", "run", "-S", f"dataset='{folder}'")
    assert set(ran) == ALL
    prepared = load_training(repository.folder / "data/prepared", "test")
    assert prepared.class_names == tuple(OWN_CLASSES) and prepared.image_shape == (3, 14, 14)
    assert prepared.labels.bincount().tolist() == [20, 8, 4, 2, 1]
    synthetic = read_synthetic_set(repository.folder / "data/condensed/synthetic.safetensors")
    assert synthetic.counts == (3, 1, 1, 1, 1) and synthetic.images.shape == (7, 3, 14, 14)
    metrics = repository.json("dvc", "metrics", "show")
    values = metrics[""]["data"]["results/evaluate/mlp/metrics.json"]["data"]["mlp"]
    assert 0 <= values["accuracy"] <= 100
    card = (repository.folder / "data/condensed/README.md").read_text()
    assert folder.name in card and str(tmp_path) not in card

    assert repository.stages_run_by("dvc", "repro") == []
    Image.fromarray(pixels.byte().numpy()).save(folder / "train/sky/2.png")
    assert repository.stages_run_by("dvc", "repro")[0] == "prepare"


def test_a_dataset_that_is_not_there(repository: Repository) -> None:
    """It is named; what DVC removed for it is back, without a run, once the old one is named."""
    patterns = ("data/prepared/*", "data/condensed/*", "results/**/*")
    before = repository.files(*patterns)
    repository.edit(dataset="./nowhere")
    done = repository.attempt("dvc", "repro")
    assert done.returncode != 0
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr
    repository.edit(dataset="mnist")
    assert repository.stages_run_by("dvc", "repro") == []
    assert repository.files(*patterns) == before


def interrupted(repository: Repository, *command: str) -> None:
    """Start a command of DVC and press Ctrl-C once `condense` has written some checkpoints."""
    process = subprocess.Popen(
        command,
        cwd=repository.folder,
        env={**repository.environment, "CHECKPOINT_SECONDS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    seen: set[int] = set()
    while len(seen) < 3 and process.poll() is None:
        for path in repository.folder.glob(".checkpoints/condense-*/images.state"):
            with contextlib.suppress(FileNotFoundError):
                seen.add(path.stat().st_mtime_ns)
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes of the command
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "stopped by SIGINT; the same command goes on" in output


@pytest.mark.slow
@pytest.mark.parametrize("command", [("repro",), ("exp", "run"), ("exp", "run", "--temp")])
def test_an_interrupted_stage_goes_on(repository: Repository, command: tuple[str, ...]) -> None:
    """By the same command, and the outputs are those of a run that nothing interrupted."""
    changes = {"condense.iterations": 60 + len(command), "condense.real_per_class": 2}
    settings = [f"--set-param={key}={value}" for key, value in changes.items()]
    if command == ("repro",):
        repository.edit(**changes)
        settings = []
    last = ["condense"] if command == ("repro",) else []
    interrupted(repository, "dvc", *command, *settings, *last)
    assert len(list(repository.folder.glob(".checkpoints/*"))) == 1
    done = repository.attempt("dvc", *command, *settings, *last)
    assert done.returncode == 0, done.stderr
    assert "condense: goes on from " in done.stdout + done.stderr
    assert list(repository.folder.glob(".checkpoints/*")) == []
    if command == ("repro",):
        resumed = repository.files(*CONDENSED)
        repository.run("dvc", "repro", "--force", "--single-item", "condense")
        assert repository.files(*CONDENSED) == resumed


@pytest.mark.slow
def test_a_sweep(repository: Repository) -> None:
    """Queued experiments run in copies of their own and leave the workspace as it was."""
    inits = ["noise", "real"]
    repository.run("dvc", "exp", "run", "--queue", "-S", f"init={','.join(inits)}")
    repository.run("dvc", "exp", "run", "--run-all", "-j", "1")
    assert repository.changed() == set()
    table = list(csv.DictReader(io.StringIO(repository.run("dvc", "exp", "show", "--csv"))))
    losses = {row["init"]: row["condense.loss"] for row in table}
    assert sorted(losses) == sorted([*inits, "mean"])  # `mean` is what the workspace has
    assert len(set(losses.values())) == len(losses) and all(losses.values())


@pytest.mark.slow
def test_two_workers_do_not_touch_each_other_s_work(repository: Repository) -> None:
    """Four experiments, of which two each make the same images: as if each had run alone."""
    sides = Repository(repository.folder, {**repository.environment, "CHECKPOINT_SECONDS": "0"})
    grid = ["-S", "init=noise,real", "-S", "evaluate.mlp.num_networks=2,3"]
    sides.run("dvc", "exp", "run", "--queue", *grid)
    sides.run("dvc", "exp", "run", "--run-all", "-j", "2")
    assert repository.changed() == set() and list(repository.folder.glob(".checkpoints/*")) == []
    rows = csv.DictReader(io.StringIO(repository.run("dvc", "exp", "show", "--csv")))
    columns = ("init", "evaluate.mlp.num_networks", "condense.loss", "mlp.accuracy")
    found = {tuple(row[name] for name in columns) for row in rows if row["init"] != "mean"}

    alone = set()
    for init, num_networks in itertools.product(("noise", "real"), (2, 3)):
        repository.edit(**{"init": init, "evaluate.mlp.num_networks": num_networks})
        for stage in ("initialize", "condense", "evaluate@mlp"):
            repository.run("dvc", "repro", "--force", "--no-run-cache", "--single-item", stage)
        values: dict[str, dict[str, Any]] = {}
        for stage in ("condense", "evaluate/mlp"):
            path = repository.folder / "results" / stage / "metrics.json"
            values |= json.loads(path.read_text())
        numbers = (num_networks, values["condense"]["loss"], values["mlp"]["accuracy"])
        alone.add((init, *(str(number) for number in numbers)))
    assert found == alone and len(found) == 4


def test_a_fresh_clone(finished: Repository, tmp_path: Path) -> None:
    """It shows the results at once; what is not in Git is made again, byte for byte."""
    finished.run("git", "clone", "--quiet", str(finished.folder), str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone", finished.environment)
    metrics = clone.json("dvc", "metrics", "show")
    assert metrics == finished.json("dvc", "metrics", "show")
    names = {name for file in metrics[""]["data"].values() for name in file["data"]}
    assert names == {"condense", *NETWORKS}
    assert clone.json("dvc", "plots", "show")["data"]

    # Data and tensors are in DVC's cache only; ceilings, curves and figures are in Git.
    # The seconds, which `render` draws, may be the same to a hundredth.
    ran = clone.stages_run_by("dvc", "repro")
    drawn = ["render"] * ("results/condense/timing.csv" in clone.changed())
    assert ran == ["prepare", "initialize", "condense", *drawn]
    seconds = {"accuracy.csv", "figures/seconds.png", "vector/seconds.pdf", *REPORT}
    seconds.add("condense/timing.csv")
    assert clone.changed() <= {"dvc.lock"} | {f"results/{name}" for name in seconds}
    locks = [yaml.safe_load((r.folder / "dvc.lock").read_text()) for r in (clone, finished)]
    for lock in locks:
        del lock["stages"]["render"]  # it draws the seconds, which differ
        outs = lock["stages"]["condense"]["outs"]
        outs[:] = [out for out in outs if out["path"] != "results/condense/timing.csv"]
    assert locks[0] == locks[1]
    shutil.rmtree(clone.folder)


# All that these scripts write, except the seconds of timing.csv.
CONDENSED = ("data/initial/*", "data/condensed/**/*", "results/condense/[!t]*")
EVALUATED = tuple(f"results/evaluate/{network}/[!t]*" for network in NETWORKS)


def rerun(finished: Repository, folder: Path, seed: int, networks: Sequence[str]) -> Repository:
    """Run the scripts from `initialize` to `evaluate` without DVC and with one thread."""
    again = Repository(folder, {**finished.environment, "OMP_NUM_THREADS": "1"})
    for name in ("data", "results"):
        (folder / name).mkdir(parents=True)
    for name in ("stages", "data/prepared", "results/baseline"):
        (folder / name).symlink_to(finished.folder / name)
    shutil.copy(finished.folder / "params.yaml", folder)
    again.edit(seed=seed)
    for script in ("initialize", "condense"):
        again.run("python", f"stages/{script}.py")
    for network in networks:
        again.run("python", "stages/evaluate.py", "--network", network)
    return again


@pytest.fixture(scope="module")
def reruns(
    finished: Repository, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Repository, Repository]:
    """The scripts run again, side by side: with the same seed, and with another one."""
    folder = tmp_path_factory.mktemp("reruns")
    with ThreadPoolExecutor(2) as pool:
        same = pool.submit(rerun, finished, folder / "same", 0, NETWORKS)
        other = pool.submit(rerun, finished, folder / "other", 1, NETWORKS[-1:])
        return same.result(), other.result()


def test_the_same_seed_gives_the_same_bytes(
    finished: Repository, reruns: tuple[Repository, Repository]
) -> None:
    """Whatever the number of threads: the pipeline took as many as there are, the scripts one."""
    again = reruns[0].files(*CONDENSED, *EVALUATED)
    expected = finished.files(*CONDENSED, *EVALUATED)
    assert again.keys() == expected.keys() and len(expected) == 1 + 15 + 5 + 5 * len(NETWORKS)
    assert [name for name in expected if again[name] != expected[name]] == []


def test_another_seed_gives_other_images_and_other_networks(
    finished: Repository, reruns: tuple[Repository, Repository]
) -> None:
    images = [
        read_synthetic_set(repository.folder / "data/condensed/synthetic.safetensors").images
        for repository in (finished, reruns[1])
    ]
    assert not torch.equal(*images)
    # Not of order 1: its table of the curvature is empty; nor is there anything to warn of.
    other = reruns[1].files("results/condense/[!ctw]*", EVALUATED[-1])
    expected = finished.files(*other)
    assert len(other) == 3 + 5
    assert [name for name in other if other[name] == expected[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, options",
    [
        ("convnet", {"norm": "batch"}),
        ("alexnet", {"width": 2, "norm": "batch"}),
        ("vgg11", {"width": 2, "norm": "batch"}),
        ("resnet18", {"width": 2, "norm": "batch", "downsampling": "avg"}),
        ("resnet18", {"width": 2}),
        ("lenet", {}),
    ],
    ids=str,
)
def test_every_network_condenses_and_is_evaluated(
    finished: Repository, tmp_path: Path, network: str, options: dict[str, Any]
) -> None:
    """With statistics of real images frozen where it has batch norm; few images, for the time."""
    run = Repository(tmp_path, {**finished.environment, "OMP_NUM_THREADS": "1"})
    (tmp_path / "data").mkdir()
    for linked in ("stages", "data/initial"):
        (tmp_path / linked).symlink_to(finished.folder / linked)
    real = load_training(finished.folder / "data/prepared", "test")
    few = dataclasses.replace(real, images=real.images[:400], labels=real.labels[:400])
    write_prepared(tmp_path / "data/prepared", few, few, torch.arange(10))
    shutil.copy(finished.folder / "params.yaml", tmp_path)
    run.edit(
        **{
            "network": network,
            "evaluate.networks": [network],
            f"evaluate.{network}": {"num_networks": 2, "snapshot_networks": 0},
            f"baseline.{network}": {"num_networks": 1, "epochs": 1, "learning_rate": 0.02},
            **{f"networks.{network}.{key}": value for key, value in options.items()},
        }
    )
    run.run("python", "stages/condense.py")
    for stage in ("baseline", "evaluate"):
        run.run("python", f"stages/{stage}.py", "--network", network)
    record = json.loads((tmp_path / f"results/evaluate/{network}/metrics.json").read_text())
    assert {"n": 2, "sets": 1, "protocol": "custom"}.items() <= record[network].items()
    before, after = (
        read_synthetic_set(tmp_path / f"data/{name}/synthetic.safetensors").images
        for name in ("initial", "condensed")
    )
    assert not torch.equal(before, after) and after.isfinite().all()


def test_the_python_of_the_readme_runs(finished: Repository) -> None:
    """From the top folder, after the pipeline."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) == 3
    for block in blocks:
        quick = re.sub(r"^epochs = \d+", "epochs = 2", block, flags=re.MULTILINE)
        finished.run("python", "-W", "error", "-c", quick)


def test_images_from_elsewhere(repository: Repository) -> None:
    """`evaluate` and `render` alone run, and tell what they were given."""
    own = read_synthetic_set(repository.folder / "data/condensed/synthetic.safetensors")
    pixels = own.images * own.std + own.mean
    published = (pixels - 0.1307) / 0.3081
    path = repository.folder / "res_DC_MNIST_ConvNet_1ipc.pt"
    sets = [[published, own.labels], [published.flip(0), own.labels.flip(0)]]
    torch.save({"data": sets, "accs_all_exps": {"ConvNet": [torch.tensor(0.9)]}}, path)
    before = repository.json("dvc", "metrics", "show")[""]["data"]
    try:
        ran = repository.stages_run_by("dvc", "exp", "run", "-S", f"evaluate.images={path.name}")
        assert set(ran) == EVALUATE | {"render"}
        after = repository.json("dvc", "metrics", "show")[""]["data"]
        name = "results/evaluate/mlp/metrics.json"
        new, old = (found[name]["data"]["mlp"]["accuracy"] for found in (after, before))
        assert abs(new - old) < 3  # the same images, and a second set in another order
        table = (repository.folder / "results/evaluate/mlp/curve.csv").read_text()
        assert len(table.splitlines()) == 2 and "\nmlp,0," in table
        drawn = {path.stem for path in (repository.folder / "results/figures").iterdir()}
        assert drawn == {"synthetic", *OF_EVALUATE}
        assert path.name in (repository.folder / "results/report.md").read_text()
    finally:
        path.unlink()


def test_a_stage_says_what_it_does_and_how_it_ended(repository: Repository) -> None:
    """Two lines, after what is compiled; no bar where there is no terminal."""
    done = repository.attempt(sys.executable, "stages/evaluate.py", "--network", "mlp")
    assert done.returncode == 0 and done.stderr == ""
    chosen, first, last = done.stdout.splitlines()
    assert chosen.startswith("evaluate mlp: compile: auto; not compiled: ")
    assert re.fullmatch(r"evaluate mlp: 4 networks of 5 epochs; CPU, \d+ threads?.*", first)
    assert re.fullmatch(
        r"evaluate mlp: [\d.]+% \(n = 2, protocol custom\), [\d.]+% of the ceiling [\d.]+%", last
    )


def test_rendering_twice_gives_the_same_bytes(repository: Repository) -> None:
    before = repository.files("results/figures/*", "results/vector/*", "results/report.*")
    repository.run("python", "stages/render.py")
    after = repository.files(*before)
    assert len(before) == 2 * len(FIGURES) + 1 + 2
    assert [name for name in before if before[name] != after[name]] == []


MISTAKES = {
    "prepare": ("ordr", 1, "ordr: unknown key; did you mean 'order'?"),
    "baseline --network mlp": ("order", 3, "order: got 3, takes 1 | 2"),
    "initialize": ("seed", "0", "seed: got '0', takes a whole number from 0"),
    "condense": ("condense.distance", "cosin", "condense.distance: got 'cosin', takes layerwise"),
    "evaluate --network mlp": ("evaluate.epochs", 0, "evaluate.epochs: got 0, takes a whole"),
    "render": ("render.dpi", ..., "render.dpi: is missing"),
}
"""A stage -> a setting, a wrong value of it, and what the stage says."""


@pytest.mark.parametrize("stage", MISTAKES)
def test_a_mistake_in_the_settings_stops_a_stage_at_once(
    stage: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """One line that names the setting, no traceback, nothing written."""
    key, value, message = MISTAKES[stage]
    shutil.copy(ROOT / "params.yaml", tmp_path)
    edit(tmp_path / "params.yaml", {key: value})
    name, *arguments = stage.split()
    command = [sys.executable, str(ROOT / f"stages/{name}.py"), *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"{name}: {message}") and done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["params.yaml"]
