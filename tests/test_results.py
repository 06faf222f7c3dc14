"""The numbers that stages write: counted again from what the networks predict, and from each other.

And a whole run of condensing against the plain loop.
"""

import csv
import dataclasses
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference
from condensation.artefacts import read_synthetic_set, set_path
from condensation.datasets import Dataset, load_training, write_prepared
from condensation.files import write_csv
from condensation.matching import draw_probes
from condensation.networks import Network, Theta, build_network, init_theta
from condensation.params import Options
from condensation.randomness import generator
from condensation.training import predict
from render import read_curves
from workspace import SMALL, make_workspace, run_here, small_dataset

CLASSES = ("zero", "one", "two")
LAST = SMALL["condense.iterations"]
NETWORKS_OF_LAST, NETWORKS_OF_SNAPSHOTS, SETS = 3, 2, 2
TASKS = [(LAST, k, n) for k in range(SETS) for n in range(NETWORKS_OF_LAST)] + [
    (i, k, n) for i in (0, 2) for k in range(SETS) for n in range(NETWORKS_OF_SNAPSHOTS)
]
"""Iteration, set and number of each network, in the order of networks.csv."""


def rows_of(folder: Path, name: str) -> list[list[str]]:
    """Return the rows of a table of results, without its header."""
    with (folder / "results" / name).open() as file:
        return [*csv.reader(file)][1:]


class Run(NamedTuple):
    """A finished run: its folder, the labels of the test set, and what each network predicted."""

    folder: Path
    labels: np.ndarray
    predicted: list[np.ndarray]  # on one thread, as tests are: in the order of `TASKS`

    def rows(self, name: str) -> list[list[str]]:
        """Return the rows of a table, without its header."""
        return rows_of(self.folder, name)

    def metrics(self, name: str) -> dict[str, Any]:
        """Return the one record of a file of metrics."""
        (record,) = json.loads((self.folder / "results" / name).read_text()).values()
        return {**record}

    def accuracies(self) -> dict[int, list[list[float]]]:
        """Return, by iteration, those of networks.csv of each set, not rounded any more."""
        found: dict[int, list[list[float]]] = {}
        for _, iteration, k, _, accuracy in self.rows("evaluate/mlp/networks.csv"):
            right = round(float(accuracy) * len(self.labels) / 100)
            of_sets = found.setdefault(int(iteration), [[] for _ in range(SETS)])
            of_sets[int(k)].append(100 * right / len(self.labels))
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """All stages, with two sets, scored on classes of 10, 6 and 10 images."""
    changes = {
        "sets": SETS,
        "init": "real",
        "condense.image_learning_rate": 1.0,  # large, so that accuracies change
        "evaluate.learning_rate": 0.1,
        "evaluate.epochs": 20,
        "evaluate.networks": ["mlp"],
        "evaluate.mlp.num_networks": NETWORKS_OF_LAST,
        "evaluate.mlp.snapshot_networks": NETWORKS_OF_SNAPSHOTS,
    }
    folder = make_workspace(tmp_path_factory.mktemp("run"), **changes)
    test = small_dataset(10, "test")
    kept = (test.labels != 1) | (torch.arange(30) < 18)
    test = dataclasses.replace(test, images=test.images[kept], labels=test.labels[kept])
    write_prepared(folder / "data/prepared", small_dataset(20, "train"), test, torch.arange(6))
    predicted = []

    def noted(*arguments: Any) -> Tensor:
        found = predict(*arguments)
        predicted.append(found.numpy())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.predict", noted)
        for stage in ("baseline --network mlp", "initialize", "condense", "evaluate --network mlp"):
            run_here(folder, stage, patch)
    yield Run(folder, test.labels.numpy(), predicted)


def spread(values: list[float]) -> str:
    return f"{statistics.stdev(values):.2f}"


def test_the_ceiling_is_the_mean_of_its_networks(run: Run) -> None:
    found = run.rows("baseline/mlp/networks.csv")
    right = [round(float(accuracy) * len(run.labels) / 100) for *_, accuracy in found]
    scores = [100 * number / len(run.labels) for number in right]
    assert [(name, index) for name, index, _ in found] == [("mlp", str(i)) for i in range(3)]
    assert run.metrics("baseline/mlp/metrics.json") == {
        "ceiling": round(statistics.fmean(scores), 2),
        "ceiling_std": round(statistics.stdev(scores), 2),
        "ceiling_n": 3,
    }


def test_an_accuracy_is_the_share_of_right_predictions(run: Run) -> None:
    expected = [
        ["mlp", *map(str, task), f"{100 * (predicted == run.labels).mean():.2f}"]
        for task, predicted in zip(TASKS, run.predicted, strict=True)
    ]
    assert run.rows("evaluate/mlp/networks.csv") == expected


def test_the_curve_has_the_mean_and_the_spread_at_each_iteration(run: Run) -> None:
    ceiling = run.metrics("baseline/mlp/metrics.json")["ceiling"]
    expected = []
    for iteration, of_sets in sorted(run.accuracies().items()):
        values = [value for of_set in of_sets for value in of_set]
        mean = f"{statistics.fmean(values):.2f}"
        n = str(len(values))
        expected.append(["mlp", str(iteration), mean, spread(values), n, str(ceiling)])
    assert run.rows("evaluate/mlp/curve.csv") == expected
    assert expected[0][2] != expected[-1][2], "an accuracy that stays shows nothing"


def test_the_metrics_are_of_all_networks_on_the_last_images(run: Run) -> None:
    of_sets = run.accuracies()[LAST]
    values = [value for of_set in of_sets for value in of_set]
    mean = statistics.fmean(values)
    within = statistics.fmean([statistics.variance(of_set) for of_set in of_sets])
    of_means = statistics.variance([statistics.fmean(of_set) for of_set in of_sets])
    between = max(0.0, of_means - within / NETWORKS_OF_LAST)
    ceiling = run.metrics("baseline/mlp/metrics.json")["ceiling"]
    assert run.metrics("evaluate/mlp/metrics.json") == {
        "accuracy": round(mean, 2),
        "retained": round(100 * mean / ceiling, 2),
        "std": round(statistics.stdev(values), 2),
        "n": NETWORKS_OF_LAST * SETS,
        "sets": SETS,
        "protocol": "custom",
        "std_between_sets": round(between**0.5, 2),
        "std_within_sets": round(within**0.5, 2),
    }


def test_classes_and_confusions_are_of_all_networks_on_the_last_images(run: Run) -> None:
    n = NETWORKS_OF_LAST * SETS
    last = np.stack(run.predicted[:n])
    classes, confusion = [], []
    for index, true in enumerate(CLASSES):
        of_class = last[:, run.labels == index]
        right = [100 * value for value in (of_class == index).mean(1).tolist()]
        classes.append(["mlp", true, f"{statistics.fmean(right):.2f}", spread(right), str(n)])
        for number, taken in enumerate(CLASSES):
            count = (of_class == number).sum() / n
            confusion.append(["mlp", true, taken, f"{count:.2f}", str(n)])
    assert run.rows("evaluate/mlp/classes.csv") == classes
    assert run.rows("evaluate/mlp/confusion.csv") == confusion


def test_the_loss_is_the_sum_over_the_classes(run: Run) -> None:
    """Both are written with six digits."""
    by_class: dict[str, dict[str, float]] = {}
    for iteration, name, loss in run.rows("condense/loss_by_class.csv"):
        by_class.setdefault(iteration, {})[name] = float(loss)
    losses = {iteration: float(loss) for iteration, loss in run.rows("condense/loss.csv")}
    assert [*losses] == [*by_class] == [str(i) for i in range(1, LAST + 1)]
    for iteration, of_classes in by_class.items():
        assert tuple(of_classes) == CLASSES
        assert losses[iteration] == pytest.approx(sum(of_classes.values()), rel=1e-5)
    assert run.metrics("condense/metrics.json") == {"loss": losses[str(LAST)]}


RATE, MOMENTUM, INNER_RATE, INNER, OUTER, REAL, IPC, SEED = 0.1, 0.7, 0.05, 2, 2, 5, 2, 3
WEIGHT, EVERY, UNTIL, PROBES, OF_LAST_LAYER = 0.4, 3, 2, 2, 2
STEPS = LAST * OUTER
OPTIONS: Options = {"width": 8, "activation": "relu"}
LIKE_THE_PLAIN_LOOP: dict[str, Any] = {
    "seed": SEED,
    "sets": SETS,
    "ipc": IPC,
    "compile": "off",
    "condense.outer": OUTER,
    "condense.inner": INNER,
    "condense.real_per_class": REAL,
    "condense.image_learning_rate": RATE,
    "condense.image_momentum": MOMENTUM,
    "condense.image_schedule": "linear_decay",
    "condense.network_learning_rate": INNER_RATE,
    "condense.network_batch_size": 256,  # all images: their order is of no effect
    "condense.snapshots": [*range(LAST)],
    "condense.curvature.weight": WEIGHT,
    "condense.curvature.schedule": "linear_decay",
    "condense.curvature.iterations": UNTIL,
    "condense.curvature.every": EVERY,
    "condense.curvature.layers": 1,
    "condense.curvature.num_probes": PROBES,
}


def module_at(network: Network, theta: Theta) -> nn.Module:
    """Return the network as a module in float64 that holds these parameters."""
    module = network.module.to_empty(device="cpu").double()
    module.load_state_dict(theta)
    return module


def plain_loop(dataset: Dataset, images: Tensor, seed: int, order: int) -> Iterator[Any]:
    """Yield the images and the loss of each class after each iteration, in float64."""
    members = [dataset.normalise(dataset.class_images(c)).double() for c in range(3)]
    images = images.double().requires_grad_()
    optimiser = torch.optim.SGD([images], momentum=MOMENTUM)
    for iteration in range(1, LAST + 1):
        network = build_network("mlp", dataset.image_shape, 3, OPTIONS)
        theta = init_theta(network, generator(seed, "theta", iteration), "cpu")
        module, losses = module_at(network, theta), []
        for image_step in range(OUTER):
            number = (iteration - 1) * OUTER + image_step
            streams = [generator(seed, "real", iteration, image_step, c) for c in range(3)]
            real = [
                of_class[torch.randperm(len(of_class), generator=stream)[:REAL]]
                for of_class, stream in zip(members, streams, strict=True)
            ]
            term: tuple[Any, ...] = ()
            if order == 2 and number % EVERY == 0 and number < UNTIL * OUTER:
                probes = draw_probes(theta, PROBES, generator(seed, "probes", number))
                vectors = [[value.double() for value in probe.values()] for probe in probes]
                term = ("hvp", WEIGHT * (1 - number / STEPS), vectors, OF_LAST_LAYER)
            own = images.detach().split(IPC)
            images.grad, loss = reference.matching_step(
                module, own, real, "squared_euclidean", *term
            )
            losses.append(loss)
            optimiser.param_groups[0]["lr"] = RATE * (1 - number / STEPS)
            optimiser.step()
            labels = torch.arange(3).repeat_interleave(IPC)
            reference.train(module, images.detach(), labels, INNER, len(labels), INNER_RATE)
        yield images.detach().clone(), torch.stack(losses).mean(0)


@pytest.mark.parametrize("order", [1, 2])
def test_images_and_losses_are_those_of_the_plain_loop(
    order: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snapshot by snapshot; the losses are means of the sets and of the image steps."""
    folder = make_workspace(tmp_path, **LIKE_THE_PLAIN_LOOP, order=order)
    for stage in ("initialize", "condense"):
        run_here(folder, stage, monkeypatch)
    dataset = load_training(folder / "data/prepared", "test")
    losses = torch.zeros(LAST, 3, dtype=torch.float64)
    for k in range(SETS):
        before = read_synthetic_set(set_path(folder / "data/initial", k)).images
        expected = plain_loop(dataset, before, SEED + k, order)
        for iteration, (images, loss) in enumerate(expected, start=1):
            path = set_path(folder / "data/condensed", k, iteration)
            ours = read_synthetic_set(path).images
            torch.testing.assert_close(ours.double(), images, rtol=0, atol=3e-6)
            assert (ours - before).abs().max() > 1e-3
            losses[iteration - 1] += loss / SETS
            before = ours
    rows = rows_of(folder, "condense/loss_by_class.csv")
    assert [name for _, name, _ in rows] == [*CLASSES] * LAST
    found = torch.tensor([float(loss) for *_, loss in rows], dtype=torch.float64)
    torch.testing.assert_close(found.view(LAST, 3), losses, rtol=1e-5, atol=0)


def test_seconds_are_those_of_condensation_until_that_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the iterations that are evaluated: more are timed."""
    monkeypatch.chdir(tmp_path)
    timing = [(0, "0.00", "CPU"), (1, "1.25", "CPU"), (5, "4.50", "CPU"), (9, "7.75", "CPU")]
    write_csv(Path("results/condense/timing.csv"), ["iteration", "seconds", "device"], timing)
    header = ["network", "iteration", "accuracy", "std", "n", "ceiling"]
    for name, iterations in (("mlp", (0, 5, 9)), ("lenet", (9,))):
        rows = [(name, iteration, "50.00", "", 1, 90.0) for iteration in iterations]
        write_csv(Path(f"results/evaluate/{name}/curve.csv"), header, rows)
    curves = read_curves(("mlp", "lenet"))
    found = {name: [*curve["seconds"].items()] for name, curve in curves.items()}
    assert found == {"mlp": [(0, 0.0), (1, 4.5), (2, 7.75)], "lenet": [(0, 7.75)]}
