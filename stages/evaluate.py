"""Fresh networks trained on the synthetic images alone, tested on real ones -> results/evaluate.

The published protocol (Zhao, Mopuri and Bilen, ICLR 2021): every number is of the last epoch, and
nothing is chosen on the images that are scored.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from condensation.allocator import keep_freed_memory
from condensation.augmentation import AUGMENTATIONS
from condensation.confusion import class_accuracy, confusion_matrix, overall_accuracy
from condensation.datasets import Dataset, load_scoring
from condensation.devices import choose_device, describe_device
from condensation.files import write_csv, write_json
from condensation.image_sets import ImageSet, load_image_set, load_image_sets
from condensation.networks import build_network, init_theta
from condensation.params import Params, load_params, run_stage
from condensation.progress import Progress
from condensation.randomness import generator, set_determinism
from condensation.sources import SOURCES
from condensation.training import predict, tenth_after_half, train
from condensation.workers import parallel_map


def main() -> None:
    """Run the stage for one network.

    Raises:
        ValueError: The network is not in evaluate.networks.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", required=True)
    name: str = parser.parse_args().network
    params = load_params(Path("params.yaml"))
    if name not in params.evaluate.networks:
        raise ValueError(f"--network: got {name}, takes {' | '.join(params.evaluate.networks)}")
    keep_freed_memory()
    set_determinism()
    tasks = list_tasks(params, name)
    real = load_scoring(Path("data/prepared"), params.split)
    start = time.perf_counter()
    confusions = score(params, name, tasks, real)
    seconds = time.perf_counter() - start
    scores = [overall_accuracy(confusion) for confusion in confusions]

    ceiling = json.loads(Path(f"results/baseline/{name}/metrics.json").read_text())[name]["ceiling"]
    by_iteration: dict[int, list[float]] = {}
    for (iteration, _), value in zip(tasks, scores, strict=True):
        by_iteration.setdefault(iteration, []).append(value)
    results = Path(f"results/evaluate/{name}")
    write_csv(
        results / "networks.csv",
        ["network", "iteration", "index", "accuracy"],
        [(name, *task, f"{value:.2f}") for task, value in zip(tasks, scores, strict=True)],
    )
    write_csv(
        results / "curve.csv",
        ["network", "iteration", "accuracy", "std", "n", "ceiling"],
        [
            (
                name,
                iteration,
                f"{statistics.fmean(values):.2f}",
                spread(values),
                len(values),
                ceiling,
            )
            for iteration, values in sorted(by_iteration.items())
        ],
    )
    last = max(by_iteration)
    final_confusions = [c for (i, _), c in zip(tasks, confusions, strict=True) if i == last]
    write_classes(results, name, real.class_names, final_confusions)
    device = choose_device(params.device)
    write_csv(
        results / "timing.csv",
        ["network", "networks", "seconds", "device"],
        [(name, len(tasks), f"{seconds:.2f}", describe_device(device))],
    )
    final = by_iteration[last]
    mean = statistics.fmean(final)
    record = {
        "accuracy": round(mean, 2),
        "retained": round(100 * mean / ceiling, 2),
        "std": float(spread(final)) if len(final) > 1 else None,
        "n": len(final),
    }
    write_json(results / "metrics.json", {name: record})
    print(
        f"evaluate {name}: {mean:.2f}% (n = {len(final)}), "
        f"{record['retained']}% of the ceiling {ceiling}%"
    )


def list_tasks(params: Params, name: str) -> list[tuple[int, int]]:
    """List (iteration, index of the network) for every network to train, the longest list last.

    Images from elsewhere have no snapshots, and no iteration: it is 0.
    """
    numbers = params.evaluate.by_network[name]
    if not is_folder(params.evaluate.images):
        return [(0, index) for index in range(numbers.num_networks)]
    last = params.condense.iterations
    earlier = sorted({*params.condense.snapshots} - {last})
    tasks = [(last, index) for index in range(numbers.num_networks)]
    return tasks + [(i, index) for i in earlier for index in range(numbers.snapshot_networks)]


def is_folder(images: str) -> bool:
    """Tell whether evaluate.images is a folder of this pipeline rather than a file."""
    return Path(images).suffix == ""


def load_sets(params: Params, iterations: set[int], real: Dataset) -> dict[int, list[ImageSet]]:
    """Load the images to train on: iteration -> one set, or all sets of a file from elsewhere.

    Raises:
        ValueError: A file is missing, damaged, or does not fit the dataset.
    """
    path = Path(params.evaluate.images)
    if is_folder(params.evaluate.images):
        sets = {i: [load_image_set(path / f"snapshots/{i:06d}.safetensors")] for i in iterations}
    else:
        source = SOURCES[params.dataset]
        published = (real.class_names, source.published_mean, source.published_std)
        sets = {0: load_image_sets(path, params.evaluate.images_scale, *published)}
    for found in [image_set for group in sets.values() for image_set in group]:
        shape = tuple(found.images.shape[1:])
        if shape != real.image_shape or found.class_names != real.class_names:
            raise ValueError(
                f"evaluate.images: {path} has {len(found.class_names)} classes and images {shape}; "
                f"the dataset has {real.num_classes} classes and images {real.image_shape}"
            )
    return {
        iteration: [found.normalised_with(real.mean, real.std) for found in group]
        for iteration, group in sets.items()
    }


def score(params: Params, name: str, tasks: list[tuple[int, int]], real: Dataset) -> list[Tensor]:
    """Train one network for each task and return the confusion matrices (C, C).

    Where a file holds several synthetic sets, the networks take them in turn.
    """
    settings = params.evaluate
    device = choose_device(params.device)
    real_images, real_labels = real.normalise(real.images).to(device), real.labels.to(device)
    network = build_network(name, real.image_shape, real.num_classes, params.networks[name])
    sets = load_sets(params, {iteration for iteration, _ in tasks}, real)
    chosen = [sets[iteration][index % len(sets[iteration])] for iteration, index in tasks]
    steps = settings.epochs * sum(-(-len(synthetic) // settings.batch_size) for synthetic in chosen)
    what = f"evaluate {name}: {len(tasks)} networks of {settings.epochs} epochs"
    bar = Progress(what, steps, "step", describe_device(device))

    def one_network(task: tuple[int, int]) -> Tensor:
        iteration, index = task
        synthetic = sets[iteration][index % len(sets[iteration])]
        # The same fresh networks for every snapshot and every setting: differences are paired.
        stream = (params.seed, "evaluate", name, index)
        theta = train(
            init_theta(network, generator(*stream, "theta"), device),
            network,
            synthetic.images.to(device),
            synthetic.labels.to(device),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            generator=generator(*stream, "training"),
            schedule=tenth_after_half,
            augmentation=AUGMENTATIONS[settings.augmentation],
            on_step=bar.update,
        )
        predicted = predict(theta, network, real_images)
        return confusion_matrix(predicted, real_labels, real.num_classes)

    with bar:
        return parallel_map(one_network, tasks, device)


def write_classes(
    results: Path, name: str, class_names: tuple[str, ...], confusions: list[Tensor]
) -> None:
    """Write what the final networks take for what (C, C each), and each class's accuracy."""
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
            (name, true, f"{statistics.fmean(values):.2f}", spread(values), len(values))
            for true, values in zip(class_names, by_class.T.tolist(), strict=True)
        ],
    )


def spread(values: list[float]) -> str:
    """Sample standard deviation as text; nothing where there is one value."""
    return f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""


if __name__ == "__main__":
    run_stage(main)
