"""Reference and engine give the same images: accuracy into `results/benchmarks/accuracy-*.json`.

Each of `WAYS` condenses MNIST with the same draws, and the same fresh networks are trained on the
images that each comes to. The rate of the images, its schedule and the momentum are those of
params.yaml, the rest is fixed here, but for what options change: `--ipc` and `--real`, the numbers
of images, one synthetic and 24 real ones a class; `--outer`, image steps in an iteration, one, and
`--inner`, epochs of training after each but the last; `--form`, a term of order 2 in each image
step, of all its real images, probed by random signs, with the weight of params.yaml. What is
measured with others than these has a file of its own.
A seed is written when it is done; a run goes on with those that the file does not have yet. About
eight minutes on two CPU cores.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "stages"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.benchmark import ROOT, commit, machine, result_file
from benchmarks.figures import DPI, curves
from benchmarks.measure import Record, rounded
from benchmarks.summaries import summarise
from benchmarks.tables import show_accuracy
from benchmarks.ways import BFLOAT16, REFERENCE, WAYS, Problem, plain
from condensation.allocator import keep_freed_memory
from condensation.checkpoints import Checkpoints
from condensation.confusion import overall_accuracy
from condensation.curvature import CURVATURE_FORMS
from condensation.datasets import Dataset, load_scoring, load_training
from condensation.devices import choose_device, has_bfloat16
from condensation.figure_style import save
from condensation.files import check_writable, write_json
from condensation.image_sets import ImageSet
from condensation.params import Params, load_params
from condensation.protocols import Protocol
from condensation.randomness import set_determinism
from evaluate import Task, score

PREPARED = ROOT / "data/prepared"
SEEDS = (0, 1, 2)
ITERATIONS = 25
SCORED = (5, 10, ITERATIONS)
"""Iterations whose images networks are trained on, beside the initial images."""

COMPARED = (1, ITERATIONS)
"""Iterations whose images are compared with those of the reference; after the first one also those
of the reference with what it gives in float64, which is what rounding comes to."""

NETWORKS = 2
"""Trained on the images of each seed and iteration."""

PROTOCOL = Protocol(epochs=300, augmentation="none")


def settings() -> Params:
    """Return the settings: the committed ones for the descent of the images, the rest fixed."""
    params = load_params(ROOT / "params.yaml")
    matching = dataclasses.replace(
        params.condense,
        iterations=ITERATIONS,
        outer=1,
        inner=1,
        distance="squared_euclidean",
        real_per_class=24,
        augmentation="none",
    )
    return dataclasses.replace(
        params,
        dataset="mnist",
        ipc=1,
        network="convnet",
        networks={"convnet": {}},  # the published one
        init="mean",
        order=1,
        split="test",
        compile="on",  # what auto comes to for a long run
        condense=matching,
    )


CHANGED = {"real": "real_per_class", "outer": "outer", "inner": "inner"}
"""Options -> settings of `condense` that they change."""


def sized(params: Params, options: Mapping[str, int | None]) -> tuple[Params, str]:
    """Return the settings with other numbers, and what the file's name begins with.

    Args:
        params: The settings.
        options: `ipc`, synthetic images a class, and keys of `CHANGED`; None: as it is.

    Raises:
        ValueError: A number is not positive, or changes nothing.
    """
    usual = {"ipc": params.ipc} | {
        name: getattr(params.condense, key) for name, key in CHANGED.items()
    }
    changed = {name: value for name, value in options.items() if value not in (None, usual[name])}
    for name, value in changed.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name}: got {value}, takes a number from 1")
    if "inner" in changed and "outer" not in changed:
        raise ValueError("--inner: nothing is trained without --outer from 2")
    of_condense: dict[str, Any] = {
        CHANGED[name]: value for name, value in changed.items() if name in CHANGED
    }
    params = dataclasses.replace(
        params,
        ipc=changed.get("ipc") or params.ipc,
        condense=dataclasses.replace(params.condense, **of_condense),
    )
    prefix = "".join(f"{name}-{value}-" for name, value in changed.items())
    return params, f"accuracy-{prefix}"


def of_order_2(params: Params, prefix: str, form: str) -> tuple[Params, str]:
    """Return the settings with a term of curvature, and what the file's name then begins with.

    Args:
        params: The settings.
        prefix: What it begins with without.
        form: A key of `CURVATURE_FORMS`.
    """
    term = dataclasses.replace(
        params.condense.curvature,
        form=form,
        schedule="constant",
        iterations=None,
        layers=None,
        probes="rademacher",
        num_probes=1,
        real_per_class=None,
        every=1,
    )
    condense = dataclasses.replace(params.condense, curvature=term)
    return dataclasses.replace(params, order=2, condense=condense), f"{prefix}{form}-"


def load() -> tuple[Dataset, Dataset]:
    """Load MNIST: what is learned from, and what is scored on.

    Raises:
        ValueError: The prepared data are missing, or are others.
    """
    try:
        training, scoring = (read(PREPARED, "test") for read in (load_training, load_scoring))
    except ValueError as error:
        raise ValueError(f"{error}: `dvc repro prepare` makes them") from None
    if training.class_names != tuple("0123456789") or training.image_shape != (1, 28, 28):
        raise ValueError(
            f"{PREPARED}: got {training.num_classes} classes, {', '.join(training.class_names)}, "
            f"and images {training.image_shape}; takes MNIST: `dvc repro prepare` with dataset: "
            "mnist"
        )
    return training, scoring


def measure(problem: Problem, scoring: Dataset) -> Record:
    """Return the accuracies and the differences between the images of one seed, of each way."""
    device = problem.device
    compiled, said = problem.choose_engine()
    images: dict[str, dict[int, Tensor]] = {}
    for name, way in WAYS.items():
        if name != BFLOAT16 or has_bfloat16(device):
            print(f"seed {problem.params.seed}, {name} ...", file=sys.stderr, flush=True)
            found = enumerate(way(problem, compiled), start=1)
            images[name] = {i: each for i, each in found if i in (*SCORED, *COMPARED)}
    at_start = accuracies(problem, {0: problem.initial()}, scoring)
    exact = next(plain(problem, dtype=torch.float64))
    ways: dict[str, Record | None] = dict.fromkeys(WAYS)
    for name, by_iteration in images.items():
        chosen = {i: by_iteration[i] for i in SCORED}
        record: Record = {"accuracy": at_start | accuracies(problem, chosen, scoring)}
        if name == REFERENCE:
            record["relative_rounding"] = _relative(by_iteration[1].double(), exact)
        else:
            record["relative_difference"] = {
                f"{i}": _relative(by_iteration[i], images[REFERENCE][i]) for i in COMPARED
            }
        ways[name] = record
    return {"engine": said, "ways": ways}


def accuracies(
    problem: Problem, images: dict[int, Tensor], scoring: Dataset
) -> dict[str, list[float]]:
    """Train fresh networks, the same for all images of a seed, and score them.

    Args:
        problem: Of which network and seed.
        images: Iteration -> (N, ch, h, w).
        scoring: What is scored on.

    Returns:
        Iteration -> the percentage of images that each network gives their own label.
    """
    params, data = problem.params, problem.dataset
    labels = torch.arange(data.num_classes).repeat_interleave(torch.tensor(problem.counts))
    sets = {
        i: [ImageSet(each.cpu(), labels, data.mean, data.std, data.class_names)]
        for i, each in images.items()
    }
    tasks = [Task(i, 0, number) for i in images for number in range(NETWORKS)]
    nothing_kept = Checkpoints("accuracy", "", keep=False)
    with contextlib.redirect_stdout(sys.stderr):
        confusions = score(
            params, PROTOCOL, params.network, tasks, sets, scoring, problem.device, nothing_kept
        )
    scores = [overall_accuracy(confusion) for confusion in confusions]
    return {
        f"{i}": [rounded(value) for task, value in zip(tasks, scores, strict=True) if task[0] == i]
        for i in images
    }


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return rounded(((ours - theirs).abs().max() / theirs.abs().max()).item())


def described(params: Params) -> Record:
    """Return the settings that the figures are of, for the file."""
    condense, (outer, inner) = params.condense, params.loops
    return {
        # Of one image step for each network, files say nothing of it: nothing is trained.
        **({"outer": outer, "inner": inner} if outer > 1 else {}),
        **({"curvature": dataclasses.asdict(condense.curvature)} if params.order == 2 else {}),
        **{key: getattr(params, key) for key in ("dataset", "network", "ipc", "init", "order")},
        **{
            key: getattr(condense, key)
            for key in (
                *("iterations", "distance", "real_per_class", "image_learning_rate"),
                *("image_schedule", "image_momentum"),
            )
        },
        "evaluation": {"networks": NETWORKS, **dataclasses.asdict(PROTOCOL)},
    }


def main() -> None:
    """Measure, write, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="measure again what the file has")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--ipc", type=int, help="synthetic images a class (1)")
    parser.add_argument("--real", type=int, help="real images a class in a batch (24)")
    parser.add_argument("--outer", type=int, help="image steps in an iteration (1)")
    parser.add_argument("--inner", type=int, help="epochs of training between two of these (1)")
    parser.add_argument("--form", choices=[*CURVATURE_FORMS], help="of order 2 (order 1)")
    given = parser.parse_args()
    device = choose_device(given.device)
    keep_freed_memory()
    set_determinism()
    params, prefix = sized(settings(), {name: getattr(given, name) for name in ("ipc", *CHANGED)})
    if given.form:
        params, prefix = of_order_2(params, prefix, given.form)
    about = machine(device)
    path = result_file(about, prefix)
    check_writable(path)
    written = json.loads(path.read_text()) if path.exists() else {}
    # Figures of other settings are none of these.
    seeds: Record = written["seeds"] if written.get("settings") == described(params) else {}
    left = [seed for seed in SEEDS if given.again or f"{seed}" not in seeds]
    training, scoring = load() if left else (None, None)
    for seed in left:
        assert training is not None and scoring is not None
        problem = Problem(dataclasses.replace(params, seed=seed), training, device)
        stamp = {"date": f"{datetime.date.today()}", "commit": commit()}
        seeds[f"{seed}"] = measure(problem, scoring) | stamp
        written = {
            "machine": about,
            "settings": described(params),
            "ways": summarise(seeds),
            "seeds": seeds,
        }
        write_json(path, written)
    print(show_accuracy(written))
    save(curves(written), path.with_suffix(".png"), DPI)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as problem:
        sys.exit(f"accuracy: {problem}")
