"""Raw files -> data/prepared: uint8 images, labels, statistics, class names, a validation split."""

from pathlib import Path

import torch
from torch import Tensor

from condensation.datasets import Dataset, write_prepared
from condensation.params import load_params, run_stage
from condensation.randomness import generator
from condensation.raw_data import not_read, read_raw

BLOCK = 1000
"""Images whose pixels are counted at once: they take four times the memory meanwhile."""

VALIDATION_SHARE = 5
"""Of a small class, one training image of so many is set aside at most."""


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (ch,) of uint8 images (N, ch, h, w), in pixel values from 0 to 1.

    Sums of whole numbers are exact, so that the result is the same on every machine.
    """
    totals = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in images.split(BLOCK):
        for channel, total in zip(part.unbind(1), totals, strict=True):
            total += torch.bincount(channel.flatten().int(), minlength=256)
    counts = totals.double()
    shares = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (shares * values).sum(1)
    variance = (shares * (values - mean[:, None]).square()).sum(1)
    return mean.float(), variance.sqrt().float()


def draw_validation(labels: Tensor, num_per_class: int, num_classes: int, seed: int) -> Tensor:
    """Draw a stratified validation part: indices (V,) in ascending order.

    Of each class `num_per_class`, but no more than a `VALIDATION_SHARE`-th of a small class, and
    one at least of two or more.
    """
    parts = []
    for index in range(num_classes):
        members = (labels == index).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "validation", index))
        most = max(len(members) // VALIDATION_SHARE, min(1, len(members) - 1))
        parts.append(members[order[: min(num_per_class, most)]])
    return torch.cat(parts).sort().values


def main() -> None:
    """Run the stage.

    Raises:
        ValueError: The raw files cannot be used, or the images of a channel are all of one value.
    """
    params = load_params(Path("params.yaml"))
    settings = params.prepare
    print(
        f"prepare: {params.dataset}; CPU; seconds, or minutes for a download or many picture files",
        flush=True,
    )
    folder = None if settings.raw is None else Path(settings.raw)
    raw = read_raw(params.dataset, folder, settings.image_size, settings.seed)
    if others := not_read(params.dataset):
        print(f"prepare: nothing is read of {', '.join(others)}; takes the folders train and test")
    validation_index = draw_validation(
        raw.train_labels, settings.validation_per_class, len(raw.class_names), settings.seed
    )
    mean, std = pixel_statistics(raw.train_images)
    constant = [f"{channel}: {mean[channel]:.3g}" for channel in (std <= 0).nonzero().flatten()]
    if constant:
        raise ValueError(
            f"dataset: got {params.dataset}, all pixels of which have one value, from 0 to 1, in "
            f"channel {', '.join(constant)}; takes images whose channels, counted from 0, are not "
            "constant"
        )
    train = Dataset(raw.train_images, raw.train_labels, mean, std, raw.class_names)
    test = Dataset(raw.test_images, raw.test_labels, mean, std, raw.class_names)
    write_prepared(Path("data/prepared"), train, test, validation_index)
    print(
        f"prepare: {len(train.labels)} training images ({len(validation_index)} of them "
        f"for validation), {len(test.labels)} test images, {train.num_classes} classes"
    )


if __name__ == "__main__":
    run_stage(main)
