"""Whether a condensation is going well: what stops it, and what is warned of once.

Shapes: K = sets, C = classes, N = synthetic images, class after class, image = (ch, h, w).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from condensation.networks import Theta

EXPLODED = 10.0
"""A matching loss so many times that of the first iteration is warned of. In the studies of this
repository (`results/studies/*/cells/*/loss.csv`) it rises to no more than 1.7 times."""

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
            return f"the {what} not finite (classes: {', '.join(_names(~finite, class_names))})"
    return None


def all_finite(theta: Theta) -> bool:
    """Return whether all parameters are finite, as they are not after a training that diverged."""
    return all(bool(value.isfinite().all()) for value in theta.values())


def without_gradient(gradient: Tensor, counts: Sequence[int]) -> Tensor:
    """Return whether the image gradient (K, N, ch, h, w) of each class is zero, (K, C) bool."""
    return _all_of_class(gradient == 0, counts)


class Warned(NamedTuple):
    """What was warned of.

    Attributes:
        iteration: When.
        kind: `explosion`, `far` or `no_gradient`.
        classes: Their names; none where it is about all of them together.
        text: What was said.
    """

    iteration: int
    kind: str
    classes: tuple[str, ...]
    text: str


class Watch:
    """Looks at each iteration and returns what has not been warned of."""

    def __init__(
        self, class_names: tuple[str, ...], counts: Sequence[int], normalised: bool
    ) -> None:
        """Watch these classes, with their numbers of images, on a network with or without norms."""
        self._class_names = class_names
        self._counts = counts
        self._normalised = normalised

    def look(
        self,
        iteration: int,
        loss: Tensor,
        first: float,
        zero: Tensor,
        images: Tensor,
        before: Sequence[Warned],
    ) -> list[Warned]:
        """Return what there is to warn of.

        Args:
            iteration: For the text.
            loss: (K, C), the matching loss of each class.
            first: That of the first iteration, of all classes.
            zero: (K, C), whether its derivative with respect to the images is zero.
            images: (K, N, ch, h, w).
            before: What was warned of before: no class is warned of twice.
        """
        warnings = []
        total = float(loss.mean(0).sum())
        if total > EXPLODED * first > 0 and all(each.kind != "explosion" for each in before):
            text = (
                f"the matching loss of iteration {iteration} is {total:.4g}, {first:.4g} at "
                "first; look at condense.image_learning_rate, condense.image_momentum and "
                "condense.inner"
            )
            warnings.append(Warned(iteration, "explosion", (), text))
        far = ~_all_of_class(images.detach().abs() <= FAR, self._counts).all(0).cpu()
        if names := self._new(far, "far", before):
            text = (
                f"pixels are beyond {FAR:g} (normalised) at iteration {iteration} for the classes "
                f"{', '.join(names)}; look at condense.image_learning_rate"
            )
            if self._normalised:
                text += (
                    ", and at init: a normalisation makes the gradient of images that are zeros "
                    "explode"
                )
            warnings.append(Warned(iteration, "far", names, text))
        without = zero.any(0).cpu()
        if self._new(without, "no_gradient", before):
            pixels = images.detach().flatten(3).cpu()
            same = pixels.amax(-1) == pixels.amin(-1)
            constant = _all_of_class(same, self._counts).any(0) & self._normalised
            for found, reason in (
                (without & constant, "its images are constant, which normalisation makes 0"),
                (without & ~constant, "the network does not respond to its images (activation?)"),
            ):
                if names := self._new(found, "no_gradient", before):
                    new = torch.tensor([name in names for name in self._class_names])
                    sets = int((zero.cpu() & new).any(1).sum())
                    text = (
                        f"the image gradient is zero at iteration {iteration} for the classes "
                        f"{', '.join(names)}"
                        + (f" in {sets} of {len(zero)} sets" if len(zero) > 1 else "")
                        + f": {reason}"
                    )
                    warnings.append(Warned(iteration, "no_gradient", names, text))
        return warnings

    def _new(self, found: Tensor, kind: str, before: Sequence[Warned]) -> tuple[str, ...]:
        # The names of the classes of which it has not been said.
        said = {name for each in before if each.kind == kind for name in each.classes}
        return tuple(name for name in _names(found, self._class_names) if name not in said)


def _all_of_class(true: Tensor, counts: Sequence[int]) -> Tensor:
    # (K, N, ...) bool -> (K, C): whether it holds everywhere in all images of the class
    parts = true.flatten(2).all(2).split(list(counts), 1)
    return torch.stack([part.all(1) for part in parts], 1)


def _names(chosen: Tensor, class_names: tuple[str, ...]) -> list[str]:
    return [name for name, yes in zip(class_names, chosen.tolist(), strict=True) if yes]
