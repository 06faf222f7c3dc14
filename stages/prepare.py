"""Raw files -> data/prepared: uint8 images, labels, statistics, class names, a validation split."""

from pathlib import Path

import torch
from torch import Tensor

from condensation.datasets import Dataset, write_prepared
from condensation.params import load_params, run_stage
from condensation.randomness import generator
from condensation.raw_data import DATASETS


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (ch,) of uint8 images (N, ch, h, w), in pixel values from 0 to 1.

    Sums of whole numbers are exact, so that the result is the same on every machine.
    """
    counts = torch.stack(
        [torch.bincount(channel.flatten().int(), minlength=256) for channel in images.unbind(1)]
    ).double()
    shares = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (shares * values).sum(1)
    variance = (shares * (values - mean[:, None]).square()).sum(1)
    return mean.float(), variance.sqrt().float()


def draw_validation(
    labels: Tensor, num_per_class: int, class_names: tuple[str, ...], seed: int
) -> Tensor:
    """Draw a stratified validation part: indices (C * num_per_class,) in ascending order.

    Raises:
        ValueError: A class has too few images to set so many aside and keep one.
    """
    parts = []
    for index, name in enumerate(class_names):
        members = (labels == index).nonzero().flatten()
        if len(members) <= num_per_class:
            raise ValueError(
                f"prepare.validation_per_class: got {num_per_class}, takes less than the "
                f"{len(members)} training images of class '{name}'"
            )
        order = torch.randperm(len(members), generator=generator(seed, "validation", index))
        parts.append(members[order[:num_per_class]])
    return torch.cat(parts).sort().values


def main() -> None:
    """Run the stage."""
    params = load_params(Path("params.yaml"))
    print(f"prepare: {params.dataset} from {params.prepare.raw}; CPU; a few seconds", flush=True)
    raw = DATASETS[params.dataset](Path(params.prepare.raw))
    validation_index = draw_validation(
        raw.train_labels,
        params.prepare.validation_per_class,
        raw.class_names,
        params.prepare.seed,
    )
    mean, std = pixel_statistics(raw.train_images)
    train = Dataset(raw.train_images, raw.train_labels, mean, std, raw.class_names)
    test = Dataset(raw.test_images, raw.test_labels, mean, std, raw.class_names)
    write_prepared(Path("data/prepared"), train, test, validation_index)
    print(
        f"prepare: {len(train.labels)} training images ({len(validation_index)} of them "
        f"for validation), {len(test.labels)} test images, {train.num_classes} classes"
    )


if __name__ == "__main__":
    run_stage(main)
