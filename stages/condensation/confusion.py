"""Which class is taken for which.

Shapes: N = number of images, C = classes.
"""

import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count the images of each true class (row) by the class that was predicted (column).

    Args:
        predicted: (N,) int64.
        labels: (N,) int64.
        num_classes: C.

    Returns:
        (C, C) int64 on the CPU.
    """
    pairs = (labels * num_classes + predicted).cpu()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def overall_accuracy(confusion: Tensor) -> float:
    """Return the percentage of all images (C, C) that got their own label."""
    return 100 * confusion.trace().item() / confusion.sum().item()


def class_accuracy(confusion: Tensor) -> Tensor:
    """Return (..., C): of each class of (..., C, C), the percentage that got its own label.

    A class without images has no accuracy: it is NaN.
    """
    return 100 * confusion.diagonal(dim1=-2, dim2=-1).double() / confusion.sum(-1)
