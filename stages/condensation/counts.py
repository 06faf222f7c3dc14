"""How many synthetic images each class gets, and images that lie class after class.

Shapes: C = classes, S_c = synthetic images of class c, N = their sum.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

Ipc = int | Mapping[str, int]
"""One number for every class, or the number of each class by its name."""


def mean_ipc(ipc: Ipc) -> Fraction:
    """Return the mean number of images per class, exactly."""
    return Fraction(sum(ipc.values()), len(ipc)) if isinstance(ipc, Mapping) else Fraction(ipc)


def class_counts(
    ipc: Ipc, shares: str, class_names: Sequence[str], class_sizes: Sequence[int]
) -> tuple[int, ...]:
    """Return the number of synthetic images of each class.

    Args:
        ipc: As in params.yaml.
        shares: `equal`: `ipc` of each class; `proportional`: `ipc` times C in all, see
            `proportional_counts`.
        class_names: C names.
        class_sizes: Real images of each class.

    Raises:
        ValueError: A class has no real images, or `ipc` names classes that are not there or leaves
            out some that are.
    """
    if empty := [name for name, size in zip(class_names, class_sizes, strict=True) if size == 0]:
        raise ValueError(f"ipc: there are no real images of {classes_text(empty)}")
    if isinstance(ipc, Mapping):
        if unknown := [name for name in ipc if name not in class_names]:
            raise ValueError(
                f"ipc: unknown {classes_text(unknown)}; the dataset has {classes_text(class_names)}"
            )
        if missing := [name for name in class_names if name not in ipc]:
            raise ValueError(
                f"ipc: has no number for {classes_text(missing)}; takes one for every class"
            )
        return tuple(ipc[name] for name in class_names)
    if shares == "proportional":
        return proportional_counts(ipc * len(class_names), class_sizes)
    return (ipc,) * len(class_names)


def proportional_counts(total: int, class_sizes: Sequence[int]) -> tuple[int, ...]:
    """Share `total` images out in proportion to the sizes of the classes, at least one each.

    A class whose exact share is below one gets one; the others share what is left, by the method of
    largest remainders (Hamilton): whole parts first, then one more each to the largest fractions,
    of equal ones to the first. No class gets more images than it has unless all together do.

    Args:
        total: Images in all, at least one for each class.
        class_sizes: Real images of each class, at least one each.
    """
    ones: set[int] = set()
    while True:
        others = [c for c in range(len(class_sizes)) if c not in ones]
        left, whole = total - len(ones), sum(class_sizes[c] for c in others)
        quotas = {c: Fraction(left * class_sizes[c], whole) for c in others}
        below = {c for c, quota in quotas.items() if quota < 1}
        if not below:
            break
        ones |= below
    counts = [1] * len(class_sizes)
    for c, quota in quotas.items():
        counts[c] = int(quota)
    by_remainder = sorted(others, key=lambda c: counts[c] - quotas[c])
    for c in by_remainder[: total - sum(counts)]:
        counts[c] += 1
    return tuple(counts)


def class_labels(counts: Sequence[int]) -> Tensor:
    """Return the class of each image: (N,) int64."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def counts_text(counts: Sequence[int]) -> str:
    """Say how many images a class has: `10`, or `2 to 15`."""
    fewest, most = min(counts), max(counts)
    return str(most) if fewest == most else f"{fewest} to {most}"


def classes_text(names: Sequence[str]) -> str:
    """Name some classes, the first twelve if they are more: `classes 'cat', 'dog'`."""
    shown = ", ".join(f"'{name}'" for name in names[:12]) + (", ..." if len(names) > 12 else "")
    return f"class{'es' if len(names) > 1 else ''} {shown}"
