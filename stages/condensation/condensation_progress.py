"""How far a condensation is: what its next image step depends on, and what it has noted so far.

Shapes: K = sets, C = classes, N = synthetic images, class after class, image = (ch, h, w).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from condensation.health import Warned
from condensation.networks import Theta
from condensation.states import State


@dataclass
class Condensation:
    """A condensation before an image step. Random numbers are drawn by name, so none are here.

    Attributes:
        images: (K, N, ch, h, w), the synthetic images.
        good: Of their shape, in the host's memory, as they were after the last iteration that has
            been looked at: known to be finite. That is the one before this iteration; while a run
            goes on, on CUDA, the one before that.
        momentum: Of SGD on the images, as `states.momentum_of` gives it.
        iteration: The one that is worked on, from 1.
        image_step: The next one on this iteration's network, from 0.
        thetas: The parameters of each set's network; empty before the first step on them.
        total: (K, C), the matching losses of this iteration so far.
        losses: The matching loss of each class, the mean of the sets, of each iteration that has
            been looked at.
        curvature: (iteration, Q, natural ratio, cosine) of each iteration whose last image step
            had the term of order 2; see `matching.Matched`.
        warnings: What was warned of.
        snapshots: Iteration -> images (K, N, ch, h, w) after it, in the host's memory.
        timing: (iteration, seconds from the beginning to then), for each snapshot.
        seconds: Since the beginning, in all runs together.
    """

    images: Tensor
    good: Tensor
    momentum: Mapping[str, Tensor]
    iteration: int
    image_step: int
    thetas: list[Theta]
    total: Tensor
    losses: list[list[float]] = field(default_factory=list)
    curvature: list[tuple[float, ...]] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    snapshots: dict[int, Tensor] = field(default_factory=dict)
    timing: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def begin(cls, images: Tensor, num_classes: int) -> "Condensation":
        """Return the state before the first iteration of these images (K, N, ch, h, w)."""
        return cls(
            images=images.clone(),
            good=images.cpu().clone(),
            momentum={},
            iteration=1,
            image_step=0,
            thetas=[],
            total=torch.zeros(len(images), num_classes, device=images.device),
            snapshots={0: images.cpu().clone()},
            timing=[(0, 0.0)],
        )

    def state(self) -> State:
        """Return this as a state to be written."""
        tensors = {
            "images": self.images,
            "good": self.good,
            "total": self.total,
            **self.momentum,
            **{
                f"theta/{k}/{name}": value
                for k, theta in enumerate(self.thetas)
                for name, value in theta.items()
            },
            **{f"snapshots/{iteration}": kept for iteration, kept in self.snapshots.items()},
        }
        record = {
            "iteration": self.iteration,
            "image_step": self.image_step,
            "losses": self.losses,
            "curvature": self.curvature,
            "warnings": self.warnings,
            "timing": self.timing,
            "seconds": self.seconds,
        }
        return State(tensors, record)

    @classmethod
    def of(cls, state: State, device: torch.device) -> "Condensation":
        """Return what `state` was made of, on a device, but what is in the host's memory."""
        tensors, record = state.tensors, state.record
        thetas: dict[str, Theta] = {}
        for key, value in tensors.items():
            if key.startswith("theta/"):
                _, k, name = key.split("/", 2)
                thetas.setdefault(k, {})[name] = value.to(device)
        return cls(
            images=tensors["images"].to(device),
            good=tensors["good"],
            momentum={
                name: value for name, value in tensors.items() if name.startswith("momentum/")
            },
            iteration=record["iteration"],
            image_step=record["image_step"],
            thetas=list(thetas.values()),
            total=tensors["total"].to(device),
            losses=record["losses"],
            curvature=[tuple(row) for row in record["curvature"]],
            warnings=[Warned(i, kind, tuple(c), text) for i, kind, c, text in record["warnings"]],
            snapshots={
                int(name.removeprefix("snapshots/")): value
                for name, value in tensors.items()
                if name.startswith("snapshots/")
            },
            timing=[(iteration, seconds) for iteration, seconds in record["timing"]],
            seconds=record["seconds"],
        )
