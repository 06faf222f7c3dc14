"""Each network trained on the whole real training set: the ceiling -> results/baseline."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from condensation.allocator import keep_freed_memory
from condensation.augmentation import AUGMENTATIONS
from condensation.checkpoints import Checkpoint, Checkpoints
from condensation.compilation import choose_kernels
from condensation.datasets import load_scoring, load_training
from condensation.devices import choose_device, describe_device
from condensation.files import check_writable, together, write_csv, write_json
from condensation.fingerprints import fingerprint
from condensation.health import all_finite
from condensation.network_sizes import refusal
from condensation.networks import build_network, freeze_statistics, init_theta
from condensation.params import Params, load_params_of_network, run_stage
from condensation.progress import Progress
from condensation.randomness import generator, set_determinism
from condensation.real_images import RealImages
from condensation.sgd import describe_recording, pays_to_record
from condensation.spread import standard_deviation
from condensation.training import accuracy, train, warm_up_and_decay
from condensation.workers import parallel_map

BATCH_NORM_IMAGES = 2000
"""Training images whose statistics batch norms are frozen at for scoring."""


def main() -> None:
    """Run the stage for one network."""
    params, name = load_params_of_network(__doc__)
    keep_freed_memory()
    set_determinism()
    device = choose_device(params.device)
    results = Path(f"results/baseline/{name}")
    check_writable(results / "metrics.json")
    identity = fingerprint(determinants(params, name, device), [Path("data/prepared")])
    with Checkpoints(f"baseline {name}", identity) as checkpoints, together():
        baseline(params, name, device, results, checkpoints)


def determinants(params: Params, name: str, device: torch.device) -> dict[str, Any]:
    """Return what the accuracies depend on, beside the input files and the code."""
    shared, own = params.baseline, params.baseline.by_network[name]
    return {
        "split": params.split,
        "device": describe_device(device),
        "compile": params.compile,
        "options": params.networks[name],
        "seed": shared.seed,
        "min_steps": shared.min_steps,
        "batch_size": shared.batch_size,
        "momentum": shared.momentum,
        "weight_decay": shared.weight_decay,
        "network": own,
    }


def baseline(
    params: Params, name: str, device: torch.device, results: Path, checkpoints: Checkpoints
) -> None:
    """Train the networks, score them and write the results.

    Raises:
        ValueError: A training diverges.
    """
    shared, own = params.baseline, params.baseline.by_network[name]
    real = load_training(Path("data/prepared"), params.split)
    scoring = load_scoring(Path("data/prepared"), params.split)
    if reason := refusal(params.used_networks, real.image_shape, real.num_classes):
        raise ValueError(reason)
    images, labels = RealImages(real, device), real.labels.to(device)
    scored, scored_labels = RealImages(scoring, device), scoring.labels.to(device)
    network = build_network(name, real.image_shape, real.num_classes, params.networks[name])
    steps_of_epoch = -(-len(labels) // shared.batch_size)
    epochs = max(own.epochs, -(-shared.min_steps // steps_of_epoch))
    steps = own.num_networks * epochs * steps_of_epoch
    seen = own.num_networks * epochs * len(labels)
    recorded = pays_to_record(params.compile, device, steps)
    chosen = choose_kernels(params.compile, network, device, seen)
    print(f"baseline {name}: {chosen}{describe_recording(recorded)}")
    what = f"baseline {name}: {own.num_networks} networks, {epochs} epochs of {len(labels)} images"
    bar = Progress(what, steps, "step", describe_device(device))

    def one_network(index: int) -> float:
        checkpoint = checkpoints.piece(str(index))
        return checkpoint.once(lambda: train_and_score(index, checkpoint))

    def train_and_score(index: int, checkpoint: Checkpoint) -> float:
        stream = (shared.seed, "baseline", name, index)
        theta = train(
            init_theta(network, generator(*stream, "theta"), device),
            network,
            images,
            labels,
            epochs=epochs,
            batch_size=shared.batch_size,
            learning_rate=own.learning_rate,
            momentum=shared.momentum,
            weight_decay=shared.weight_decay,
            generator=generator(*stream, "training"),
            schedule=warm_up_and_decay,
            augmentation=AUGMENTATIONS[own.augmentation],
            on_step=bar.update,
            checkpoint=checkpoint,
            recorded=recorded,
        )
        if not all_finite(theta):
            raise ValueError(
                f"network {index} diverged: its parameters are not finite; look at "
                f"baseline.{name}.learning_rate, baseline.momentum and baseline.weight_decay"
            )
        some = torch.randperm(len(images), generator=generator(*stream, "batch norm"))
        frozen = freeze_statistics(network, theta, images[some[:BATCH_NORM_IMAGES]])
        return accuracy(theta, frozen, scored, scored_labels)

    start = time.perf_counter()
    with bar:
        scores = parallel_map(one_network, range(own.num_networks), device)
    mean = statistics.fmean(scores)
    record = {
        "ceiling": round(mean, 2),
        "ceiling_std": standard_deviation(scores),
        "ceiling_n": len(scores),
    }
    write_csv(
        results / "networks.csv",
        ["network", "index", "accuracy"],
        [(name, index, f"{value:.2f}") for index, value in enumerate(scores)],
    )
    write_csv(
        results / "timing.csv",
        ["network", "networks", "seconds", "device"],
        [(name, len(scores), f"{time.perf_counter() - start:.2f}", describe_device(device))],
    )
    write_json(results / "metrics.json", {name: record})
    print(f"baseline {name}: {mean:.2f}% (n = {len(scores)}), the ceiling")


if __name__ == "__main__":
    run_stage(main)
