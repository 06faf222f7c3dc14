"""Images and labels as they are read from raw files, before anything is computed from them.

Shapes: N = number of images, image = (ch, h, w).
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its authors publish it.

    Attributes:
        train_images: (N, ch, h, w) uint8.
        train_labels: (N,) int64.
        test_images: (N, ch, h, w) uint8.
        test_labels: (N,) int64.
        class_names: One name for each class.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
