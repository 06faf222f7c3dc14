"""The synthetic sets before condensation -> data/initial."""

from pathlib import Path

from condensation.allocator import give_back_freed_memory, keep_freed_memory
from condensation.artefacts import SyntheticSet, set_path, write_synthetic_set
from condensation.counts import class_counts, counts_text
from condensation.datasets import Dataset, load_training
from condensation.devices import choose_device, describe_device
from condensation.features import Features, embedding, pixels
from condensation.files import together
from condensation.initialisers import INITIALISERS
from condensation.network_sizes import refusal
from condensation.networks import build_network
from condensation.params import Params, load_params, run_stage
from condensation.randomness import generator, set_determinism


def main() -> None:
    """Run the stage.

    Raises:
        ValueError: `ipc` does not fit the classes, or a class has not images enough.
    """
    params = load_params(Path("params.yaml"))
    dataset = load_training(Path("data/prepared"), params.split)
    if reason := refusal(params.used_networks, dataset.image_shape, dataset.num_classes):
        raise ValueError(reason)
    counts = class_counts(params.ipc, params.ipc_shares, dataset.class_names, dataset.class_sizes)
    number = counts_text(counts)
    print(
        f"initialize: {params.init}, images a class: {number}; seconds, or minutes for many images "
        "a class",
        flush=True,
    )
    features = chosen_features(params, dataset)
    with together():
        for index in range(params.sets):
            seed = params.seed + index
            stream = generator(seed, "initialize", params.init)
            try:
                images = INITIALISERS[params.init](dataset, counts, stream, features)
            except ValueError as error:
                raise ValueError(f"ipc: got {number}, with init {params.init}: {error}") from None
            metadata = {"init": params.init, "seed": str(seed), "split": params.split}
            synthetic = SyntheticSet(
                images, counts, dataset.mean, dataset.std, dataset.class_names, metadata
            )
            write_synthetic_set(set_path(Path("data/initial"), index), synthetic)
    print(
        f"initialize: {sum(counts)} images of {dataset.num_classes} classes"
        + (f" in each of {params.sets} sets" if params.sets > 1 else "")
    )


def chosen_features(params: Params, dataset: Dataset) -> Features:
    """Return what coresets compare images by."""
    settings = params.initialize
    if settings.features == "pixels":
        give_back_freed_memory()
        return pixels
    keep_freed_memory()
    set_determinism()
    network = build_network(
        params.network, dataset.image_shape, dataset.num_classes, params.networks[params.network]
    )
    device = choose_device(params.device)
    print(
        f"initialize: features of {params.network} after {settings.epochs} epochs, "
        f"{describe_device(device)}; on a CPU it takes minutes for a large network",
        flush=True,
    )
    return embedding(network, settings.epochs, settings.learning_rate, device)


if __name__ == "__main__":
    run_stage(main)
