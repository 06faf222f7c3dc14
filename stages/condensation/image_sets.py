"""A synthetic set to train on, whatever file it came in.

    from condensation.image_sets import load_image_set
    dataset = load_image_set("data/condensed/synthetic.safetensors")
    dataset.images, dataset.labels, dataset.mean, dataset.std  # normalised = (pixel - mean) / std

Shapes: N = number of images, ch = channels, image = (ch, h, w).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.utils.data
from torch import Tensor

from condensation.artefacts import SyntheticSet, denormalise, read_synthetic_set
from condensation.published_formats import read_published_sets


@dataclass(frozen=True)
class ImageSet(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Labelled images in memory; `torch.utils.data.DataLoader` takes it as it is.

    Attributes:
        images: (N, ch, h, w) float32, normalised.
        labels: (N,) int64.
        mean: (ch,) float32: pixel value in [0, 1] = images * std + mean.
        std: (ch,) float32.
        class_names: One name for each class.
        augmentation: A key of `AUGMENTATIONS`, with which they were learned; `none` also where
            their file does not say.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    class_names: tuple[str, ...]
    augmentation: str = "none"

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image (ch, h, w) and its label."""
        return self.images[index], int(self.labels[index])

    @property
    def pixels(self) -> Tensor:
        """(N, ch, h, w): the images as pixel values, limited to [0, 1], for looking at."""
        return denormalise(self.images, self.mean, self.std).clamp(0, 1)

    @property
    def pixels_by_class(self) -> list[Tensor]:
        """Those of each class, (S_c, ch, h, w)."""
        pixels = self.pixels
        return [pixels[self.labels == index] for index in range(len(self.class_names))]

    def normalised_with(self, mean: Tensor, std: Tensor) -> "ImageSet":
        """Return the same pixel values, normalised with another mean (ch,) and std (ch,)."""
        if torch.equal(mean, self.mean) and torch.equal(std, self.std):
            return self
        pixels = denormalise(self.images, self.mean, self.std)
        images = (pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        return replace(self, images=images, mean=mean, std=std)


def flat(synthetic: SyntheticSet) -> ImageSet:
    """Return a synthetic set as labelled images."""
    return ImageSet(
        synthetic.images,
        synthetic.labels,
        synthetic.mean,
        synthetic.std,
        synthetic.class_names,
        synthetic.metadata.get("augmentation", "none"),
    )


def load_image_set(path: str | Path) -> ImageSet:
    """Load a set that this pipeline wrote.

    Raises:
        ValueError: The file is missing, damaged or not a synthetic set.
    """
    return flat(read_synthetic_set(Path(path)))


def is_folder(images: str | Path) -> bool:
    """Tell whether evaluate.images is a folder of this pipeline rather than a file."""
    return Path(images).is_dir() or Path(images).suffix == ""


def load_image_sets(
    path: Path,
    scale: str,
    class_names: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> list[ImageSet]:
    """Load the sets of a file: one of this pipeline (`.safetensors`), or others' (`.pt`, `.pth`).

    Args:
        path: The file. One of others may hold several sets.
        scale: What the images of a `.pt` file are. `normalised`: with `mean` and `std`; `pixels`:
            values from 0 to 1; `auto`: as the layout of the file says.
        class_names: Of the classes that labels of a `.pt` file count.
        mean: Of each channel, what normalised images of a `.pt` file were normalised with.
        std: Likewise.

    Raises:
        ValueError: The file is missing or damaged, is of another format, has labels that are no
            class or a class without an image, or pixel values outside 0 to 1.
    """
    if path.suffix == ".safetensors":
        return [load_image_set(path)]
    if path.suffix not in (".pt", ".pth"):
        raise ValueError(f"evaluate.images: got {path}, takes a folder, .safetensors, .pt or .pth")
    found = read_published_sets(path)
    pixels = (found.scale if scale == "auto" else scale) == "pixels"
    num_channels = len(mean)
    sets = []
    for images, labels in found.sets:
        if images.shape[1] != num_channels:
            raise ValueError(
                f"{path}: images have {images.shape[1]} channels; the dataset has {num_channels}"
            )
        if not images.isfinite().all():
            raise ValueError(f"{path}: images hold values that are no numbers")
        if pixels and not (images.min() >= -0.001 and images.max() <= 1.001):
            raise ValueError(
                f"{path}: pixel values lie from {images.min():.3g} to {images.max():.3g}, not from "
                "0 to 1; for normalised images set evaluate.images_scale to normalised"
            )
        present = labels.unique().tolist()
        if present != list(range(len(class_names))):
            raise ValueError(
                f"{path}: labels are of the classes {_short(present)}; takes at least one image of "
                f"each class from 0 to {len(class_names) - 1}"
            )
        sets.append(
            ImageSet(
                images,
                labels,
                torch.zeros(num_channels) if pixels else torch.tensor(mean),
                torch.ones(num_channels) if pixels else torch.tensor(std),
                class_names,
            )
        )
    return sets


def _short(numbers: list[int]) -> str:
    text = ", ".join(map(str, numbers[:12]))
    return text + (", ..." if len(numbers) > 12 else "")
