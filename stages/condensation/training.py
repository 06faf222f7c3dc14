"""Training a network and measuring its accuracy: the one SGD of baseline, condense and evaluate.

Shapes: N = number of images, image = (ch, h, w), K = networks that are trained side by side.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NotRequired, TypedDict, Unpack

import torch
from torch import Tensor

from condensation.augmentation import Draw
from condensation.batches import Batches
from condensation.checkpoints import Checkpoint
from condensation.networks import Network, Theta
from condensation.real_images import RealImages
from condensation.sgd import OneByOne, Sgd, SomeAtOnce
from condensation.stacked import (
    Gradient,
    compiled_gradient_of_one,
    goes_in_parts,
    gradient_in_parts,
    one_gradient,
)
from condensation.states import State

Schedule = Callable[[float], float]
"""Progress of the run, from 0 to below 1 -> factor of a learning rate, or of curvature's weight."""

ACCURACY_BLOCK = {"cpu": 50}
"""Images scored at once, by type of device: more leave a CPU's cache and are slower."""


def constant(progress: float) -> float:
    """The same learning rate throughout."""
    return 1.0


def tenth_after_half(progress: float) -> float:
    """The published evaluation: a tenth of the learning rate after half of the steps."""
    return 1.0 if progress < 0.5 else 0.1


def warm_up_and_decay(progress: float) -> float:
    """Rises linearly over the first quarter, then falls linearly to 0."""
    return progress / 0.25 if progress < 0.25 else (1 - progress) / 0.75


def linear_decay(progress: float) -> float:
    """Falls linearly to 0: the noise of the last small batches is averaged away."""
    return 1 - progress


class Settings(TypedDict):
    """How to train.

    Attributes:
        epochs: Passes over the images, each in a new random order.
        batch_size: Images in a step; the last step of an epoch takes what is left.
        learning_rate: Before the schedule's factor.
        momentum: Of SGD.
        weight_decay: Of SGD, on all parameters.
        schedule: Factor of the learning rate at each step; `constant` unless given.
        augmentation: Drawn anew for each image in each epoch; none unless given.
        on_step: Called after each step of each network, for instance to move a progress bar; after
            some at once where these are one graph; also for the steps of an earlier run that the
            checkpoint goes on from.
        checkpoint: Where to go on from, and where to note how far the training is.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: NotRequired[Schedule]
    augmentation: NotRequired[Draw | None]
    on_step: NotRequired[Callable[[], object] | None]
    checkpoint: NotRequired[Checkpoint | None]


def train(
    theta: Theta,
    network: Network,
    images: Tensor | RealImages,
    labels: Tensor,
    *,
    generator: torch.Generator,
    compiled: bool = False,
    recorded: bool = False,
    in_parts: bool = False,
    autocast: torch.dtype | None = None,
    **settings: Unpack[Settings],
) -> Theta:
    """Train a network by SGD on the mean cross-entropy and return its parameters.

    Args:
        theta: Parameters to begin with; they are left as they are.
        network: The network.
        images: (N, ch, h, w), normalised.
        labels: (N,) int64.
        generator: Draws the order and the augmentation.
        compiled: Whether its gradient is a compiled graph; for a network without batch norms.
        recorded: Whether some steps are one CUDA graph.
        in_parts: Whether, on the CPU, a batch goes through a network of fused blocks in parts, each
            on one thread; the result then does not depend on the number of threads.
        autocast: What convolutions and products are lowered to, if to anything; the parameters and
            what moves them stay as precise as they are.
        **settings: See `Settings`.
    """
    gradient = one_gradient(network, autocast)
    if in_parts and goes_in_parts(network, images.device):
        gradient = gradient_in_parts(network, autocast)
    if compiled:
        most = min(settings["batch_size"], len(labels))
        gradient = compiled_gradient_of_one(network, most, autocast)
    return train_together(
        [theta], gradient, [images], [labels], [generator], recorded=recorded, **settings
    )[0]


def train_together(
    thetas: Sequence[Theta],
    gradient: Gradient,
    images: Sequence[Tensor | RealImages],
    labels: Sequence[Tensor],
    generators: Sequence[torch.Generator],
    *,
    recorded: bool = False,
    **settings: Unpack[Settings],
) -> list[Theta]:
    """Train K networks side by side, each as if it were alone, and return their parameters.

    Args:
        thetas: Of each network, the parameters to begin with; they are left as they are.
        gradient: Of the loss of each.
        images: Of each network, (N, ch, h, w), normalised; as many of each.
        labels: Of each network, (N,) int64.
        generators: Of each network: draws the order and the augmentation.
        recorded: Whether some steps are one CUDA graph, which trainings with the same gradient
            share.
        **settings: See `Settings`.
    """
    stacked = {name: torch.stack([theta[name] for theta in thetas]).detach() for name in thetas[0]}
    sgd: Sgd = (SomeAtOnce if recorded else OneByOne)(
        stacked, gradient, settings["momentum"], settings["weight_decay"]
    )
    batches = Batches(
        images,
        labels,
        generators,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        augmentation=settings.get("augmentation"),
    )
    schedule, checkpoint = settings.get("schedule", constant), settings.get("checkpoint")
    on_step = settings.get("on_step") or (lambda: None)
    done = 0
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        done = _restore(state, sgd, batches)
        for _ in range(done * len(thetas)):
            on_step()
    steps = batches.steps(done)
    while done < batches.total:
        together = range(done, done + batches.alike(done, sgd.at_once))
        rates = [settings["learning_rate"] * schedule(step / batches.total) for step in together]
        sgd.take(rates, *zip(*itertools.islice(steps, len(together)), strict=True))
        done = together.stop
        for _ in range(len(together) * len(thetas)):
            on_step()
        if checkpoint is not None:
            checkpoint.offer(partial(_state, done, sgd, batches))
    parameters = sgd.parameters()
    return [{name: value[k] for name, value in parameters.items()} for k in range(len(thetas))]


def _state(done: int, sgd: Sgd, batches: Batches) -> State:
    parameters = {f"theta/{name}": value for name, value in sgd.parameters().items()}
    return State({**parameters, **sgd.momentum(), **batches.state()}, {"steps": done})


def _restore(state: State, sgd: Sgd, batches: Batches) -> int:
    # Put everything to where it was; return the steps done.
    parameters = {name: state.tensors[f"theta/{name}"] for name in sgd.parameters()}
    sgd.restore(parameters, state.tensors)
    batches.restore(state.tensors)
    steps: int = state.record["steps"]
    return steps


@torch.no_grad()
def predict(theta: Theta, network: Network, images: Tensor | RealImages) -> Tensor:
    """Return the class (N,) that the network gives each of the images (N, ch, h, w)."""
    block = ACCURACY_BLOCK.get(images.device.type, 1000)
    return torch.cat([network.first_order(theta, part).argmax(1) for part in images.split(block)])


def accuracy(theta: Theta, network: Network, images: Tensor | RealImages, labels: Tensor) -> float:
    """Return the percentage of images (N, ch, h, w) that the network gives their label (N,)."""
    return 100 * (predict(theta, network, images) == labels).sum().item() / len(labels)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear_decay": linear_decay,
    "tenth_after_half": tenth_after_half,
    "warm_up_and_decay": warm_up_and_decay,
}
