"""The synthetic set before condensation -> data/initial."""

from pathlib import Path

from condensation.artefacts import SyntheticSet, write_synthetic_set
from condensation.datasets import load_training
from condensation.initialisers import INITIALISERS
from condensation.params import load_params, run_stage
from condensation.randomness import generator


def main() -> None:
    """Run the stage.

    Raises:
        ValueError: There are not images enough for the initial set.
    """
    params = load_params(Path("params.yaml"))
    dataset = load_training(Path("data/prepared"), params.split)
    stream = generator(params.seed, "initialize", params.init)
    try:
        images = INITIALISERS[params.init](dataset, params.ipc, stream)
    except ValueError as error:
        raise ValueError(f"ipc: got {params.ipc}, with init {params.init}: {error}") from None
    metadata = {"init": params.init, "seed": str(params.seed), "split": params.split}
    synthetic = SyntheticSet(images, dataset.mean, dataset.std, dataset.class_names, metadata)
    write_synthetic_set(Path("data/initial/synthetic.safetensors"), synthetic)
    print(f"{params.init}: {dataset.num_classes} classes x {params.ipc} images")


if __name__ == "__main__":
    run_stage(main)
