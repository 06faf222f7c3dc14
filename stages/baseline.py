"""Each network trained on the whole real training set: the ceiling -> results/baseline."""

import argparse
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

from condensation.datasets import load_scoring, load_training
from condensation.devices import choose_device
from condensation.files import write_csv, write_json
from condensation.networks import build_network, freeze_statistics, init_theta
from condensation.params import load_params, run_stage
from condensation.randomness import generator, set_determinism
from condensation.training import accuracy, train, warm_up_and_decay
from condensation.workers import parallel_map

BATCH_NORM_IMAGES = 2000
"""Training images whose statistics batch norms are frozen at for scoring."""


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
    shared, own = params.baseline, params.baseline.by_network[name]
    set_determinism()
    device = choose_device(params.device)
    real = load_training(Path("data/prepared"), params.split)
    scoring = load_scoring(Path("data/prepared"), params.split)
    images, labels = real.normalise(real.images).to(device), real.labels.to(device)
    scored, scored_labels = scoring.normalise(scoring.images).to(device), scoring.labels.to(device)
    network = build_network(name, real.image_shape, real.num_classes, params.networks[name])
    steps = own.num_networks * own.epochs * -(-len(labels) // shared.batch_size)
    bar = tqdm(total=steps, desc=f"baseline {name}", unit="step")

    def one_network(index: int) -> float:
        stream = (shared.seed, "baseline", name, index)
        theta = train(
            init_theta(network, generator(*stream, "theta"), device),
            network,
            images,
            labels,
            epochs=own.epochs,
            batch_size=shared.batch_size,
            learning_rate=own.learning_rate,
            momentum=shared.momentum,
            weight_decay=shared.weight_decay,
            generator=generator(*stream, "training"),
            schedule=warm_up_and_decay,
            on_step=bar.update,
        )
        some = torch.randperm(len(images), generator=generator(*stream, "batch norm"))
        frozen = freeze_statistics(network, theta, images[some[:BATCH_NORM_IMAGES].to(device)])
        return accuracy(theta, frozen, scored, scored_labels)

    with bar:
        scores = parallel_map(one_network, range(own.num_networks), device)
    mean = statistics.fmean(scores)
    record = {
        "ceiling": round(mean, 2),
        "ceiling_std": round(statistics.stdev(scores), 2) if len(scores) > 1 else None,
        "ceiling_n": len(scores),
    }
    results = Path(f"results/baseline/{name}")
    write_csv(
        results / "networks.csv",
        ["network", "index", "accuracy"],
        [(name, index, f"{value:.2f}") for index, value in enumerate(scores)],
    )
    write_json(results / "metrics.json", {name: record})
    print(f"{name}: {mean:.2f}% (n = {len(scores)}) after the whole training set")


if __name__ == "__main__":
    run_stage(main)
