"""How far a condensation is: what its next image step depends on, and what it has noted so far.

Shapes: C = classes, S = synthetic images a class, image = (ch, h, w).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from condensation.networks import Theta
from condensation.states import State


@dataclass
class Progress:
    """A condensation before an image step. Random numbers are drawn by name, so none are here.

    Attributes:
        images: (C, S, ch, h, w), the synthetic images.
        good: Of their shape, as they were before this iteration: known to be finite.
        momentum: Of SGD on the images, of their shape; None before the first step.
        iteration: The one that is worked on, from 1.
        image_step: The next one on this iteration's network, from 0.
        theta: That network's parameters; empty before the first step on it.
        total: (C,), the matching losses of this iteration so far.
        losses: The matching loss of each class, of each iteration that is finished.
        snapshots: Iteration -> images (C, S, ch, h, w), as they were after it.
        timing: (iteration, seconds from the beginning to then), for each snapshot.
        seconds: Since the beginning, in all runs together.
    """

    images: Tensor
    good: Tensor
    momentum: Tensor | None
    iteration: int
    image_step: int
    theta: Theta
    total: Tensor
    losses: list[list[float]] = field(default_factory=list)
    snapshots: dict[int, Tensor] = field(default_factory=dict)
    timing: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    def state(self) -> State:
        """Return this as a state to be written."""
        tensors = {
            "images": self.images,
            "good": self.good,
            "total": self.total,
            **({} if self.momentum is None else {"momentum": self.momentum}),
            **{f"theta/{name}": value for name, value in self.theta.items()},
            **{f"snapshots/{iteration}": kept for iteration, kept in self.snapshots.items()},
        }
        record = {
            "iteration": self.iteration,
            "image_step": self.image_step,
            "losses": self.losses,
            "timing": self.timing,
            "seconds": self.seconds,
        }
        return State(tensors, record)

    @classmethod
    def of(cls, state: State, device: torch.device) -> "Progress":
        """Return what `state` was made of, the tensors on a device and the snapshots on the CPU."""
        tensors, record = state.tensors, state.record
        return cls(
            images=tensors["images"].to(device),
            good=tensors["good"].to(device),
            momentum=tensors["momentum"].to(device) if "momentum" in tensors else None,
            iteration=record["iteration"],
            image_step=record["image_step"],
            theta={
                name.removeprefix("theta/"): value.to(device)
                for name, value in tensors.items()
                if name.startswith("theta/")
            },
            total=tensors["total"].to(device),
            losses=record["losses"],
            snapshots={
                int(name.removeprefix("snapshots/")): value
                for name, value in tensors.items()
                if name.startswith("snapshots/")
            },
            timing=[(iteration, seconds) for iteration, seconds in record["timing"]],
            seconds=record["seconds"],
        )
