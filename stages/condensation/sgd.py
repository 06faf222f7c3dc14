"""SGD on the parameters of K networks side by side: a step at a time, or some as one CUDA graph.

On CUDA the way to each operator is longer than its work, and PyTorch's SGD goes that way for each
step anew; of a graph the host tells the device once for all of its steps.

Shapes: K = networks, S = steps, B = images in a step, image = (ch, h, w), theta = (K, *p) each.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from condensation.networks import Theta
from condensation.recording import Recorded
from condensation.stacked import Gradient
from condensation.states import momentum_of, put_momentum

STEPS_AT_ONCE = 10
"""Steps of a graph: more save little, and take longer to record."""

RECORDED_FROM = 100
"""Steps with one recording from which it pays, roundly: on an H100 it takes 0.1 s, and a step of
ConvNet at B = 100 0.8 ms in place of 3.6, of LeNet 0.5 in place of 2.2."""

Steps = Callable[[Theta, Theta, Tensor, Tensor, Tensor], tuple[Theta, Theta]]
"""`(theta, momentum, rates (S,), images (S, K, B, ch, h, w), labels (S, K, B))` -> the first two
after S steps; the momentum is empty where there is none."""


class Sgd(Protocol):
    """SGD under way.

    Attributes:
        at_once: Steps to take together.
    """

    at_once: int

    def take(
        self, rates: Sequence[float], images: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> None:
        """Take some steps.

        Args:
            rates: The learning rate of each.
            images: Of each, (K, B, ch, h, w); the same shape of all.
            labels: Of each, (K, B).
        """

    def parameters(self) -> Theta:
        """Return the parameters (K, *p) by now."""

    def momentum(self) -> Mapping[str, Tensor]:
        """Return what `restore` takes beside the parameters, `momentum/` before each name."""

    def restore(self, parameters: Theta, momentum: Mapping[str, Tensor]) -> None:
        """Go on from what `parameters` and `momentum` returned, wherever it has been since."""


class OneByOne:
    """PyTorch's SGD."""

    at_once = 1

    def __init__(
        self, theta: Theta, gradient: Gradient, momentum: float, weight_decay: float
    ) -> None:
        """Take over the parameters, which are changed in place."""
        self._theta, self._gradient = theta, gradient
        self._optimiser = torch.optim.SGD(
            theta.values(), momentum=momentum, weight_decay=weight_decay, fused=True
        )

    def take(
        self, rates: Sequence[float], images: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> None:
        """Take the steps one after the other."""
        for rate, shown, answers in zip(rates, images, labels, strict=True):
            self._optimiser.param_groups[0]["lr"] = rate
            for name, value in self._gradient(self._theta, shown, answers).items():
                self._theta[name].grad = value.contiguous()
            self._optimiser.step()

    def parameters(self) -> Theta:
        """Return the parameters, which further steps change."""
        return self._theta

    def momentum(self) -> Mapping[str, Tensor]:
        """Return PyTorch's buffers."""
        return momentum_of(self._optimiser, self._theta)

    def restore(self, parameters: Theta, momentum: Mapping[str, Tensor]) -> None:
        """Copy them to where they are needed."""
        for name, value in self._theta.items():
            value.copy_(parameters[name])
        put_momentum(momentum, self._optimiser, self._theta)


class SomeAtOnce:
    """Steps as CUDA graphs, which SGDs with the same gradient and settings share."""

    at_once = STEPS_AT_ONCE

    def __init__(
        self, theta: Theta, gradient: Gradient, momentum: float, weight_decay: float
    ) -> None:
        """Take the parameters, which stay as they are."""
        self._theta = theta
        # PyTorch's begins with the first gradient, which is what comes of zeros.
        self._momentum = {name: torch.zeros_like(theta[name]) for name in theta if momentum}
        self._steps = recorded_steps(gradient, momentum, weight_decay)

    def take(
        self, rates: Sequence[float], images: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> None:
        """Take the steps as one."""
        (dtype,) = {value.dtype for value in self._theta.values()}
        self._theta, self._momentum = self._steps(
            self._theta,
            self._momentum,
            torch.tensor(rates, dtype=dtype),
            torch.stack([*images]),
            torch.stack([*labels]),
        )

    def parameters(self) -> Theta:
        """Return the parameters."""
        return self._theta

    def momentum(self) -> Mapping[str, Tensor]:
        """Return the momentum of each parameter."""
        return {f"momentum/{name}": value for name, value in self._momentum.items()}

    def restore(self, parameters: Theta, momentum: Mapping[str, Tensor]) -> None:
        """Take copies."""
        for kept, given in (
            (self._theta, parameters),
            (self._momentum, {name: momentum[f"momentum/{name}"] for name in self._momentum}),
        ):
            for name, value in kept.items():
                kept[name] = torch.empty_like(value).copy_(given[name])


@lru_cache(maxsize=1)  # more would keep the graphs of earlier stages, and their memory
def recorded_steps(gradient: Gradient, momentum: float, weight_decay: float) -> Steps:
    """Return steps of SGD as one graph, the same as the last time for the same arguments.

    As `torch.optim.SGD`: of the gradient g at theta, v = momentum v + g + weight_decay theta, and
    theta is moved by - rate v.

    Args:
        gradient: What is taken for g; see `Recorded` for what it must not do.
        momentum: Of SGD.
        weight_decay: Of SGD, on all parameters.
    """

    def steps(
        theta: Theta, velocity: Theta, rates: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Theta, Theta]:
        names = [*theta]
        values, velocities = [*theta.values()], [velocity[name] for name in names if velocity]
        rates = rates.to(values[0].device)  # where they are recorded, they are there
        for rate, shown, answers in zip(rates, images, labels, strict=True):
            found = gradient(dict(zip(names, values, strict=True)), shown, answers)
            # All parameters at once: by itself, each is two kernels that hardly fill the device.
            # Those whose numbers lie in another order would be taken one by one, all of them.
            slopes = [found[name].contiguous() for name in names]
            if weight_decay:
                slopes = [*torch._foreach_add(slopes, values, alpha=weight_decay)]
            if momentum:
                slopes = velocities = [*torch._foreach_add(slopes, velocities, alpha=momentum)]
            values = [*torch._foreach_sub(values, torch._foreach_mul(slopes, rate))]
        moved = dict(zip(names, values, strict=True))
        return moved, dict(zip(names, velocities, strict=True)) if velocity else {}

    return Recorded(steps)


def pays_to_record(compile_setting: str, device: torch.device, num_steps: int) -> bool:
    """Whether a training goes by CUDA graphs.

    Args:
        compile_setting: auto, on or off: a graph is no compilation, but `off` is for what is plain.
        device: Where.
        num_steps: Of all trainings that may share a recording.
    """
    return device.type == "cuda" and compile_setting != "off" and num_steps >= RECORDED_FROM


def describe_recording(recorded: bool) -> str:
    """Say that trainings go by CUDA graphs, if they do, to end a line with."""
    return f"; training {STEPS_AT_ONCE} steps at a time" if recorded else ""
