"""Whether a condensation is going well: what stops it, and what is warned of once.

Shapes: K = sets, C = classes, N = synthetic images, class after class, image = (ch, h, w).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from condensation.networks import Theta

EXPLODED = 100.0
"""A matching loss so many times that of the first iteration is warned of."""

FAR = 1000.0
"""Normalised pixels beyond it, in either direction, are warned of: real ones are below 10."""


def not_finite(
    loss: Tensor, images: Tensor, counts: Sequence[int], class_names: tuple[str, ...]
) -> str | None:
    """Say what is not a number any more: the matching loss or the images; None if all is well.

    Args:
        loss: (K, C), the matching loss of each class.
        images: (K, N, ch, h, w), the synthetic images after the step.
        counts: The number of images of each class.
        class_names: One for each class.
    """
    for what, finite in (
        ("matching loss is", loss.isfinite().all(0)),
        ("synthetic images are", _all_of_class(images.isfinite(), counts).all(0)),
    ):
        if not finite.all():
            return f"the {what} not finite (classes: {_names(~finite, class_names)})"
    return None


def all_finite(theta: Theta) -> bool:
    """Return whether all parameters are finite, as they are not after a training that diverged."""
    return all(bool(value.isfinite().all()) for value in theta.values())


def without_gradient(gradient: Tensor, counts: Sequence[int]) -> Tensor:
    """Return whether the image gradient (K, N, ch, h, w) of each class is zero, (K, C) bool."""
    return _all_of_class(gradient == 0, counts)


class Watch:
    """Looks at each iteration and returns each warning once."""

    def __init__(
        self, class_names: tuple[str, ...], counts: Sequence[int], first: float | None
    ) -> None:
        """Watch these classes; `first` is the loss of the first iteration if that is over."""
        self._class_names = class_names
        self._counts = counts
        self._first = first
        self._exploded = False
        self._far = torch.zeros(len(class_names), dtype=torch.bool)
        self._without_gradient = torch.zeros(len(class_names), dtype=torch.bool)

    def look(self, iteration: int, loss: Tensor, zero: Tensor, images: Tensor) -> list[str]:
        """Return what there is to warn of.

        Args:
            iteration: For the text.
            loss: (K, C), the matching loss of each class.
            zero: (K, C), whether its derivative with respect to the images is zero.
            images: (K, N, ch, h, w).
        """
        warnings = []
        total = float(loss.mean(0).sum())
        if self._first is None:
            self._first = total
        if not self._exploded and total > EXPLODED * self._first > 0:
            self._exploded = True
            warnings.append(
                f"the matching loss of iteration {iteration} is {total:.4g}, {self._first:.4g} at "
                "first; look at condense.image_learning_rate and condense.image_momentum"
            )
        far = ~_all_of_class(images.detach().abs() <= FAR, self._counts).all(0).cpu() & ~self._far
        if far.any():
            self._far |= far
            warnings.append(
                f"pixels are beyond {FAR:g} (normalised) at iteration {iteration} for the classes "
                f"{_names(far, self._class_names)}; look at condense.image_learning_rate, and at "
                "init: an instance norm makes the gradient of images that are zeros explode"
            )
        without = zero.any(0).cpu() & ~self._without_gradient
        if without.any():
            self._without_gradient |= without
            pixels = images.detach().flatten(3).cpu()
            same = pixels.amax(-1) == pixels.amin(-1)
            constant = _all_of_class(same, self._counts).any(0)
            for found, reason in (
                (without & constant, "its images are constant, which normalisation makes 0"),
                (without & ~constant, "the network does not respond to its images (activation?)"),
            ):
                if found.any():
                    warnings.append(
                        f"the image gradient is zero at iteration {iteration} for the classes "
                        f"{_names(found, self._class_names)}: {reason}"
                    )
        return warnings


def _all_of_class(true: Tensor, counts: Sequence[int]) -> Tensor:
    # (K, N, ...) bool -> (K, C): whether it holds everywhere in all images of the class
    parts = true.flatten(2).all(2).split(list(counts), 1)
    return torch.stack([part.all(1) for part in parts], 1)


def _names(chosen: Tensor, class_names: tuple[str, ...]) -> str:
    return ", ".join(name for name, yes in zip(class_names, chosen.tolist(), strict=True) if yes)
