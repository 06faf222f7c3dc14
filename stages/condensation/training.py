"""Training a network and measuring its accuracy: the one SGD of baseline, condense and evaluate.

Shapes: N = number of images, image = (ch, h, w).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from condensation.augmentation import Draw, apply_augmentation
from condensation.checkpoints import Checkpoint
from condensation.derivatives import classification_loss
from condensation.networks import Network, Theta
from condensation.real_images import RealImages
from condensation.states import State, momentum_of, put_momentum

Schedule = Callable[[float], float]
"""Progress of the training, from 0 to below 1 -> factor of the learning rate."""

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


def train(
    theta: Theta,
    network: Network,
    images: Tensor | RealImages,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    generator: torch.Generator,
    schedule: Schedule = constant,
    augmentation: Draw | None = None,
    on_step: Callable[[], object] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Theta:
    """Train a network by SGD on the mean cross-entropy and return its parameters.

    Args:
        theta: Parameters to begin with; they are left as they are.
        network: The network.
        images: (N, ch, h, w), normalised.
        labels: (N,) int64.
        epochs: Passes over the images, each in a new random order.
        batch_size: Images in a step; the last step of an epoch takes what is left.
        learning_rate: Before the schedule's factor.
        momentum: Of SGD.
        weight_decay: Of SGD, on all parameters.
        generator: Draws the order and the augmentation.
        schedule: Factor of the learning rate at each step.
        augmentation: Drawn anew for each image in each epoch.
        on_step: Called after each step, for instance to move a progress bar; also for the steps
            of an earlier run that the checkpoint goes on from.
        checkpoint: Where to go on from, and where to note how far the training is.
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in theta.items()}
    optimiser = torch.optim.SGD(
        leaves.values(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
    )
    size = (images.shape[-2], images.shape[-1])
    steps_per_epoch = -(-len(images) // batch_size)
    total = epochs * steps_per_epoch
    first, order = 0, torch.empty(0, dtype=torch.int64)
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        first, order = _restore(state, leaves, optimiser, generator)
        if on_step is not None:
            for _ in range(first):
                on_step()
    for step in range(first, total):
        begin = step % steps_per_epoch * batch_size
        if begin == 0:
            order = torch.randperm(len(images), generator=generator).to(images.device)
        chosen = order[begin : begin + batch_size]
        optimiser.param_groups[0]["lr"] = learning_rate * schedule(step / total)
        batch = images[chosen]
        if augmentation is not None:
            batch = apply_augmentation(batch, augmentation(len(batch), size, generator))
        optimiser.zero_grad()
        classification_loss(leaves, network.first_order, batch, labels[chosen]).backward()
        optimiser.step()
        if on_step is not None:
            on_step()
        if checkpoint is not None:
            checkpoint.offer(partial(_state, step + 1, order, leaves, optimiser, generator))
    return {name: value.detach() for name, value in leaves.items()}


def _state(
    done: int,
    order: Tensor,
    leaves: Theta,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> State:
    # After `done` steps, the last of them in an epoch of this order of the images.
    parameters = {f"theta/{name}": value for name, value in leaves.items()}
    draws = {"order": order, "generator": generator.get_state()}
    return State({**parameters, **momentum_of(optimiser, leaves), **draws}, {"steps": done})


def _restore(
    state: State, leaves: Theta, optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> tuple[int, Tensor]:
    # Put everything to where it was; return the steps done and the order of the epoch.
    with torch.no_grad():
        for name, value in leaves.items():
            value.copy_(state.tensors[f"theta/{name}"])
    put_momentum(state.tensors, optimiser, leaves)
    generator.set_state(state.tensors["generator"])
    device = next(iter(leaves.values())).device
    return state.record["steps"], state.tensors["order"].to(device)


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
