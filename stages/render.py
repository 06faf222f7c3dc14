"""What the other stages wrote -> results/figures, and all networks in results/accuracy.csv."""

from pathlib import Path

import numpy as np
import pandas as pd

from condensation.artefacts import read_synthetic_set
from condensation.datasets import Dataset, load_training
from condensation.figure_style import save
from condensation.files import write_bytes
from condensation.image_grids import image_grid, snapshot_strip
from condensation.params import load_params, run_stage
from condensation.plots import accuracy_curve, loss_curve, retained_bars


def main() -> None:
    """Run the stage."""
    params = load_params(Path("params.yaml"))
    dataset = load_training(Path("data/prepared"), params.split)
    condensed = Path("data/condensed")
    synthetic = read_synthetic_set(condensed / "synthetic.safetensors")
    snapshots = {
        iteration: read_synthetic_set(condensed / f"snapshots/{iteration:06d}.safetensors")
        for iteration in (*params.condense.snapshots, params.condense.iterations)
    }
    loss = pd.read_csv("results/condense/loss.csv")
    # As text: a class may be called 7.
    loss_by_class = pd.read_csv("results/condense/loss_by_class.csv", dtype={"class": str})
    curves = {
        network: pd.read_csv(f"results/evaluate/{network}/curve.csv")
        for network in params.evaluate.networks
    }

    # Only the networks that are evaluated now: DVC would also plot the files of earlier ones.
    accuracy = pd.concat(curves.values())
    write_bytes(Path("results/accuracy.csv"), accuracy.to_csv(index=False).encode())

    names = synthetic.class_names
    figures = {
        "synthetic": image_grid(
            synthetic.pixels.numpy(), first_images(dataset, params.render.real_examples), names
        ),
        "snapshots": snapshot_strip(
            {iteration: snapshot.pixels.numpy() for iteration, snapshot in snapshots.items()}, names
        ),
        "loss": loss_curve(loss, loss_by_class, names),
        "accuracy": accuracy_curve(curves),
        "retained": retained_bars(curves),
    }
    for name, figure in figures.items():
        path = Path(f"results/figures/{name}.png")
        save(figure, path, params.render.dpi)
        print(path)


def first_images(dataset: Dataset, num_images: int) -> np.ndarray:
    """Return the first images of each class: pixels (C, num_images, ch, h, w) in [0, 1].

    Raises:
        ValueError: A class has fewer images than that.
    """
    pixels = []
    for index, name in enumerate(dataset.class_names):
        images = dataset.class_images(index)
        if len(images) < num_images:
            raise ValueError(
                f"render.real_examples: got {num_images}, but class '{name}' has {len(images)} "
                "real images"
            )
        pixels.append(images[:num_images].numpy() / np.float32(255))
    return np.stack(pixels)


if __name__ == "__main__":
    run_stage(main)
