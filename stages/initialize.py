"""The synthetic set before condensation -> data/initial."""

from pathlib import Path

from condensation.artefacts import SyntheticSet, write_synthetic_set
from condensation.datasets import load_training
from condensation.initialisers import INITIALISERS
from condensation.params import load_params, run_stage
from condensation.randomness import generator


def main() -> None:
    """Run the stage."""
    params = load_params(Path("params.yaml"))
    print(f"initialize: {params.init}, {params.ipc} images a class; CPU; a few seconds", flush=True)
    dataset = load_training(Path("data/prepared"), params.split)
    images = INITIALISERS[params.init](
        dataset, params.ipc, generator(params.seed, "initialize", params.init)
    )
    metadata = {"init": params.init, "seed": str(params.seed), "split": params.split}
    synthetic = SyntheticSet(images, dataset.mean, dataset.std, dataset.class_names, metadata)
    write_synthetic_set(Path("data/initial/synthetic.safetensors"), synthetic)
    print(f"initialize: {dataset.num_classes * params.ipc} images of {dataset.num_classes} classes")


if __name__ == "__main__":
    run_stage(main)
