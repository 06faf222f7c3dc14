"""Fresh networks trained on the synthetic images alone, tested on real ones -> results/evaluate.

The published protocol (Zhao, Mopuri and Bilen, ICLR 2021): every number is of the last epoch, and
nothing is chosen on the images that are scored.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from condensation.allocator import keep_freed_memory
from condensation.artefacts import check_fit, read_synthetic_set
from condensation.augmentation import AUGMENTATIONS
from condensation.checkpoints import Checkpoint, Checkpoints
from condensation.datasets import load_scoring
from condensation.devices import choose_device, describe_device
from condensation.files import check_writable, together, write_csv, write_json
from condensation.fingerprints import fingerprint
from condensation.health import all_finite
from condensation.networks import build_network, init_theta
from condensation.params import Params, load_params, run_stage
from condensation.randomness import generator, set_determinism
from condensation.training import accuracy, tenth_after_half, train
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
    device = choose_device(params.device)
    results = Path(f"results/evaluate/{name}")
    check_writable(results / "metrics.json")
    # The ceiling is no input of theirs: accuracies are compared with it afterwards.
    inputs = [Path("data/prepared"), Path("data/condensed")]
    identity = fingerprint(determinants(params, name, device), inputs)
    with Checkpoints(f"evaluate {name}", identity) as checkpoints, together():
        evaluate(params, name, device, results, checkpoints)


def determinants(params: Params, name: str, device: torch.device) -> dict[str, Any]:
    """Return what the accuracies depend on, beside the input files and the code."""
    settings = params.evaluate
    return {
        "seed": params.seed,
        "split": params.split,
        "device": describe_device(device),
        "options": params.networks[name],
        "iterations": params.condense.iterations,
        "snapshots": params.condense.snapshots,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "momentum": settings.momentum,
        "weight_decay": settings.weight_decay,
        "augmentation": settings.augmentation,
        "network": settings.by_network[name],
    }


def evaluate(
    params: Params, name: str, device: torch.device, results: Path, checkpoints: Checkpoints
) -> None:
    """Train the networks, score them and write the results."""
    tasks = list_tasks(params, name)
    scores = score(params, name, tasks, device, checkpoints)

    ceiling = json.loads(Path(f"results/baseline/{name}/metrics.json").read_text())[name]["ceiling"]
    by_iteration: dict[int, list[float]] = {}
    for (iteration, _), value in zip(tasks, scores, strict=True):
        by_iteration.setdefault(iteration, []).append(value)
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
    final = by_iteration[params.condense.iterations]
    mean = statistics.fmean(final)
    record = {
        "accuracy": round(mean, 2),
        "retained": round(100 * mean / ceiling, 2),
        "std": float(spread(final)) if len(final) > 1 else None,
        "n": len(final),
    }
    write_json(results / "metrics.json", {name: record})
    print(
        f"{name}: {mean:.2f}% (n = {len(final)}), {record['retained']}% of the ceiling {ceiling}%"
    )


def list_tasks(params: Params, name: str) -> list[tuple[int, int]]:
    """List (iteration, index of the network) for every network to train, the longest list last."""
    numbers = params.evaluate.by_network[name]
    last = params.condense.iterations
    earlier = sorted({*params.condense.snapshots} - {last})
    tasks = [(last, index) for index in range(numbers.num_networks)]
    return tasks + [(i, index) for i in earlier for index in range(numbers.snapshot_networks)]


def score(
    params: Params,
    name: str,
    tasks: list[tuple[int, int]],
    device: torch.device,
    checkpoints: Checkpoints,
) -> list[float]:
    """Train one network for each task and return the accuracies, in percent.

    Raises:
        ValueError: A training diverges.
    """
    settings = params.evaluate
    real = load_scoring(Path("data/prepared"), params.split)
    real_images, real_labels = real.normalise(real.images).to(device), real.labels.to(device)
    network = build_network(name, real.image_shape, real.num_classes, params.networks[name])
    sets = {}
    for iteration in {iteration for iteration, _ in tasks}:
        path = Path(f"data/condensed/snapshots/{iteration:06d}.safetensors")
        sets[iteration] = read_synthetic_set(path)
        check_fit(path, sets[iteration], real.image_shape, real.class_names)
    bar = tqdm(
        total=len(tasks) * settings.epochs, desc=f"evaluate {name}", unit="epoch", disable=None
    )

    def one_network(task: tuple[int, int]) -> float:
        checkpoint = checkpoints.piece("{}-{}".format(*task))
        return checkpoint.once(lambda: train_and_score(task, checkpoint))

    def train_and_score(task: tuple[int, int], checkpoint: Checkpoint) -> float:
        iteration, index = task
        # The same fresh networks for every snapshot and every setting: differences are paired.
        stream = (params.seed, "evaluate", name, index)
        theta = train(
            init_theta(network, generator(*stream, "theta"), device),
            network,
            sets[iteration].images.flatten(0, 1).to(device),
            sets[iteration].labels.flatten().to(device),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            generator=generator(*stream, "training"),
            schedule=tenth_after_half,
            augmentation=AUGMENTATIONS[settings.augmentation],
            on_step=bar.update,
            checkpoint=checkpoint,
        )
        if not all_finite(theta):
            raise ValueError(
                f"network {index} diverged on the images of iteration {iteration}: its parameters "
                "are not finite; look at evaluate.learning_rate, evaluate.momentum and "
                "evaluate.weight_decay"
            )
        return accuracy(theta, network, real_images, real_labels)

    with bar:
        return parallel_map(one_network, tasks, device)


def spread(values: list[float]) -> str:
    """Sample standard deviation as text; nothing where there is one value."""
    return f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""


if __name__ == "__main__":
    run_stage(main)
