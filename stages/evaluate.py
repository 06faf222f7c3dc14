"""Fresh networks trained on the synthetic images alone, tested on real ones -> results/evaluate.

By one of the published protocols: every number is of the last epoch, and nothing is chosen on the
images that are scored.
"""

import itertools
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condensation.allocator import keep_freed_memory
from condensation.artefacts import set_path
from condensation.augmentation import AUGMENTATIONS
from condensation.checkpoints import Checkpoint, Checkpoints
from condensation.compilation import choose_kernels
from condensation.confusion import class_accuracy, confusion_matrix, overall_accuracy
from condensation.counts import classes_text
from condensation.datasets import Dataset, load_scoring
from condensation.devices import choose_device, describe_device
from condensation.files import check_writable, together, write_csv, write_json
from condensation.fingerprints import fingerprint
from condensation.health import all_finite
from condensation.image_sets import ImageSet, is_folder, load_image_set, load_image_sets
from condensation.metrics import read_metrics
from condensation.network_sizes import refusal
from condensation.networks import Theta, build_network, freeze_statistics, init_theta
from condensation.params import Params, load_params_of_network, run_stage
from condensation.progress import Progress
from condensation.protocols import Protocol, choose_protocol
from condensation.randomness import generator, set_determinism
from condensation.real_images import RealImages
from condensation.sgd import describe_recording, pays_to_record
from condensation.sources import published_statistics
from condensation.spread import spread_of_sets, standard_deviation
from condensation.stacked import arrange
from condensation.training import predict, tenth_after_half, train_together
from condensation.workers import parallel_map


class Task(NamedTuple):
    """One network to train: on the images of an iteration, of a set; which of the networks."""

    iteration: int
    set: int
    number: int


def main() -> None:
    """Run the stage for one network.

    Raises:
        ValueError: A network cannot take the images.
    """
    params, name = load_params_of_network(__doc__)
    keep_freed_memory()
    set_determinism()
    device = choose_device(params.device)
    results = Path(f"results/evaluate/{name}")
    check_writable(results / "metrics.json")
    ceilings = Path(f"results/baseline/{name}/metrics.json")
    ceiling = read_metrics(ceilings, name, ("ceiling",))["ceiling"]
    protocol_name, protocol = chosen_protocol(params)
    # The ceiling is no input of theirs: accuracies are compared with it afterwards.
    inputs = [Path("data/prepared"), Path(params.evaluate.images)]
    identity = fingerprint(determinants(params, name, device), inputs)
    with Checkpoints(f"evaluate {name}", identity) as checkpoints, together():
        real = load_scoring(Path("data/prepared"), params.split)
        if reason := refusal(params.used_networks, real.image_shape, real.num_classes):
            raise ValueError(reason)
        sets = load_sets(params, name, real)
        if said := misjudged(params, sets):
            print(f"evaluate {name}: {said}")
        tasks = list_tasks(params, name, sets)
        start = time.perf_counter()
        confusions = score(params, protocol, name, tasks, sets, real, device, checkpoints)
        seconds = time.perf_counter() - start
        write_results(results, name, protocol_name, tasks, confusions, real.class_names, ceiling)
        write_csv(
            results / "timing.csv",
            ["network", "networks", "seconds", "device"],
            [(name, len(tasks), f"{seconds:.2f}", describe_device(device))],
        )


def chosen_protocol(params: Params) -> tuple[str, Protocol]:
    """Return the name that goes with the figures, and the settings of the training."""
    own = params.evaluate
    return choose_protocol(
        own.protocol,
        params.dataset,
        epochs=own.epochs,
        batch_size=own.batch_size,
        learning_rate=own.learning_rate,
        momentum=own.momentum,
        weight_decay=own.weight_decay,
        augmentation=own.augmentation,
    )


def misjudged(params: Params, sets: dict[int, list[ImageSet]]) -> str:
    """Return what to say of images that were learned with augmentation and are judged without."""
    learned, own = sets[max(sets)][0].augmentation, params.evaluate
    if learned == "none" or own.protocol == "dsa" or own.augmentation is not None:
        return ""
    return (
        f"the images were learned with condense.augmentation {learned}, and networks are trained "
        f"on them by evaluate.protocol {own.protocol}, without it; dsa goes with them"
    )


def determinants(params: Params, name: str, device: torch.device) -> dict[str, Any]:
    """Return what the accuracies depend on, beside the input files and the code."""
    return {
        "seed": params.seed,
        "sets": params.sets,
        "split": params.split,
        "device": describe_device(device),
        "compile": params.compile,
        "options": params.networks[name],
        "iterations": params.condense.iterations,
        "snapshots": params.condense.snapshots,
        "images_scale": params.evaluate.images_scale,
        "protocol": chosen_protocol(params)[1],
        "network": params.evaluate.by_network[name],
    }


def load_sets(params: Params, name: str, real: Dataset) -> dict[int, list[ImageSet]]:
    """Load the images to train on: iteration -> the sets.

    A file from elsewhere has no snapshots, and no iteration: it is 0.

    Raises:
        ValueError: A file is missing, damaged, or does not fit the dataset.
    """
    path = Path(params.evaluate.images)
    last = params.condense.iterations
    if is_folder(params.evaluate.images):
        earlier = params.evaluate.by_network[name].snapshot_networks > 0
        iterations = sorted({last, *(params.condense.snapshots if earlier else ())})
        sets = {
            i: [load_image_set(set_path(path, k, i)) for k in range(params.sets)]
            for i in iterations
        }
    else:
        published = published_statistics(params.dataset, real.mean, real.std)
        scale = params.evaluate.images_scale
        sets = {0: load_image_sets(path, scale, real.class_names, *published)}
    for found in [image_set for group in sets.values() for image_set in group]:
        shape = tuple(found.images.shape[1:])
        if shape != real.image_shape or found.class_names != real.class_names:
            raise ValueError(
                f"evaluate.images: {path} has {len(found.class_names)} "
                f"{classes_text(found.class_names)} and images {shape}; the dataset has "
                f"{real.num_classes} {classes_text(real.class_names)} and images {real.image_shape}"
            )
    return {
        iteration: [found.normalised_with(real.mean, real.std) for found in group]
        for iteration, group in sets.items()
    }


def list_tasks(params: Params, name: str, sets: dict[int, list[ImageSet]]) -> list[Task]:
    """List every network to train, those on the last images first."""
    numbers = params.evaluate.by_network[name]
    last = max(sets)
    return [
        Task(iteration, k, number)
        for iteration in [last, *sorted(sets.keys() - {last})]
        for k in range(len(sets[iteration]))
        for number in range(
            numbers.num_networks if iteration == last else numbers.snapshot_networks
        )
    ]


def score(
    params: Params,
    protocol: Protocol,
    name: str,
    tasks: list[Task],
    sets: dict[int, list[ImageSet]],
    real: Dataset,
    device: torch.device,
    checkpoints: Checkpoints,
) -> list[Tensor]:
    """Train one network for each task and return the confusion matrices (C, C).

    Raises:
        ValueError: A training diverges.
    """
    real_images, real_labels = RealImages(real, device), real.labels.to(device)
    network = build_network(name, real.image_shape, real.num_classes, params.networks[name])
    lengths = [len(sets[task.iteration][task.set]) for task in tasks]
    steps = protocol.epochs * sum(-(-length // protocol.batch_size) for length in lengths)
    seen = protocol.epochs * sum(lengths)
    recorded = pays_to_record(params.compile, device, steps)
    chosen = choose_kernels(params.compile, network, device, seen)
    print(f"evaluate {name}: {chosen}{describe_recording(recorded)}")
    what = f"evaluate {name}: {len(tasks)} networks of {protocol.epochs} epochs"
    bar = Progress(what, steps, "step", describe_device(device))
    sizes, gradient = arrange(
        lengths,
        network,
        real.image_shape,
        device,
        epochs=protocol.epochs,
        batch_size=protocol.batch_size,
    )
    left = iter(tasks)
    groups = [list(itertools.islice(left, size)) for size in sizes]

    def one_group(group: list[Task]) -> list[Tensor]:
        checkpoint = checkpoints.piece("{}-{}-{}".format(*group[0]))
        counts = checkpoint.once(lambda: [c.tolist() for c in train_and_score(group, checkpoint)])
        return [torch.tensor(count) for count in counts]

    def train_and_score(group: list[Task], checkpoint: Checkpoint) -> list[Tensor]:
        synthetic = [sets[task.iteration][task.set] for task in group]
        images = [image_set.images.to(device) for image_set in synthetic]
        # The same fresh networks for every snapshot and every setting: differences are paired.
        streams = [(params.seed + task.set, "evaluate", name, task.number) for task in group]
        thetas = train_together(
            [init_theta(network, generator(*stream, "theta"), device) for stream in streams],
            gradient,
            images,
            [image_set.labels.to(device) for image_set in synthetic],
            [generator(*stream, "training") for stream in streams],
            epochs=protocol.epochs,
            batch_size=protocol.batch_size,
            learning_rate=protocol.learning_rate,
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
            schedule=tenth_after_half,
            augmentation=AUGMENTATIONS[protocol.augmentation],
            on_step=bar.update,
            checkpoint=checkpoint,
            recorded=recorded,
        )
        return [score_one(*one) for one in zip(group, thetas, images, strict=True)]

    def score_one(task: Task, theta: Theta, images: Tensor) -> Tensor:
        if not all_finite(theta):
            raise ValueError(
                f"network {task.number} diverged on the images of iteration {task.iteration}: its "
                "parameters are not finite; look at evaluate.learning_rate, evaluate.momentum and "
                "evaluate.weight_decay"
            )
        scored = freeze_statistics(network, theta, images)
        predicted = predict(theta, scored, real_images)
        return confusion_matrix(predicted, real_labels, real.num_classes)

    with bar:
        confusions = parallel_map(one_group, groups, device)
    return [confusion for group in confusions for confusion in group]


def write_results(
    results: Path,
    name: str,
    protocol: str,
    tasks: list[Task],
    confusions: list[Tensor],
    class_names: tuple[str, ...],
    ceiling: float,
) -> None:
    """Write every network's accuracy, the curve, the classes and the metrics."""
    scores = [overall_accuracy(confusion) for confusion in confusions]
    by_iteration: dict[int, list[float]] = {}
    for task, value in zip(tasks, scores, strict=True):
        by_iteration.setdefault(task.iteration, []).append(value)
    write_csv(
        results / "networks.csv",
        ["network", "iteration", "set", "index", "accuracy"],
        [(name, *task, f"{value:.2f}") for task, value in zip(tasks, scores, strict=True)],
    )
    write_csv(
        results / "curve.csv",
        ["network", "iteration", "accuracy", "std", "n", "ceiling"],
        [
            (
                name,
                i,
                *mean_and_spread(values),
                len(values),
                ceiling,
            )
            for i, values in sorted(by_iteration.items())
        ],
    )
    last = max(by_iteration)
    final_confusions = [c for t, c in zip(tasks, confusions, strict=True) if t.iteration == last]
    write_classes(results, name, class_names, final_confusions)
    final = by_iteration[last]
    by_set: dict[int, list[float]] = {}
    for task, value in zip(tasks, scores, strict=True):
        if task.iteration == last:
            by_set.setdefault(task.set, []).append(value)
    of_sets = spread_of_sets(list(by_set.values()))
    mean = statistics.fmean(final)
    retained = round(100 * mean / ceiling, 2) if ceiling else None
    record = {
        "accuracy": round(mean, 2),
        "retained": retained,
        "std": standard_deviation(final),
        "n": len(final),
        "sets": len(by_set),
        "protocol": protocol,
    }
    if len(by_set) > 1:  # of one set, the spread is within it
        record |= {"std_between_sets": of_sets.between, "std_within_sets": of_sets.within}
    write_json(results / "metrics.json", {name: record})
    part = (
        f"the ceiling is {ceiling}%"
        if retained is None
        else f"{retained}% of the ceiling {ceiling}%"
    )
    print(f"evaluate {name}: {mean:.2f}% (n = {len(final)}, protocol {protocol}), {part}")
    if retained is not None and retained > 100:
        print(
            f"evaluate {name}: the ceiling is no ceiling: on the real images the network comes to "
            f"less. Longer training on them may mend it: baseline.{name}.epochs, baseline.min_steps"
        )


def write_classes(
    results: Path, name: str, class_names: tuple[str, ...], confusions: list[Tensor]
) -> None:
    """Write what the final networks take for what (C, C each), and each class's accuracy.

    A class without images, which a validation part may have, has no accuracy and no spread.
    """
    shared = torch.stack(confusions).double()
    by_class = class_accuracy(shared)
    write_csv(
        results / "confusion.csv",
        ["network", "class", "predicted", "count", "n"],
        [
            (name, true, predicted, f"{count:.2f}", len(confusions))
            for true, row in zip(class_names, shared.mean(0).tolist(), strict=True)
            for predicted, count in zip(class_names, row, strict=True)
        ],
    )
    write_csv(
        results / "classes.csv",
        ["network", "class", "accuracy", "std", "n"],
        [
            (name, true, *mean_and_spread(values), len(values))
            for true, values in zip(class_names, by_class.T.tolist(), strict=True)
        ],
    )


def mean_and_spread(values: list[float]) -> tuple[str, str]:
    """Mean and sample standard deviation as texts; nothing of values that are not known (NaN)."""
    if any(map(math.isnan, values)):
        return "", ""
    return f"{statistics.fmean(values):.2f}", spread(values)


def spread(values: list[float]) -> str:
    """Sample standard deviation as text; nothing where there is one value."""
    std = standard_deviation(values)
    return "" if std is None else f"{std:.2f}"


if __name__ == "__main__":
    run_stage(main)
