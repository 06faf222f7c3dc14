"""The synthetic sets before condensation -> data/initial."""

from pathlib import Path

from condensation.artefacts import SyntheticSet, set_path, write_synthetic_set
from condensation.counts import class_counts, counts_text
from condensation.datasets import load_training
from condensation.features import pixels
from condensation.files import together
from condensation.initialisers import INITIALISERS
from condensation.params import load_params, run_stage
from condensation.randomness import generator


def main() -> None:
    """Run the stage.

    Raises:
        ValueError: `ipc` does not fit the classes, or a class has not images enough.
    """
    params = load_params(Path("params.yaml"))
    dataset = load_training(Path("data/prepared"), params.split)
    counts = class_counts(params.ipc, params.ipc_shares, dataset.class_names, dataset.class_sizes)
    number = counts_text(counts)
    print(f"initialize: {params.init}, {number} images a class; CPU; a few seconds", flush=True)
    with together():
        for index in range(params.sets):
            seed = params.seed + index
            stream = generator(seed, "initialize", params.init)
            try:
                images = INITIALISERS[params.init](dataset, counts, stream, pixels)
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


if __name__ == "__main__":
    run_stage(main)
