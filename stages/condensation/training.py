"""Training a network and measuring its accuracy: the one SGD of baseline, condense and evaluate.

Shapes: N = number of images, image = (ch, h, w).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from condensation.augmentation import Draw, apply_augmentation
from condensation.derivatives import classification_loss
from condensation.networks import Network, Theta

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
    images: Tensor,
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
        on_step: Called after each step, for instance to move a progress bar.
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in theta.items()}
    optimiser = torch.optim.SGD(
        leaves.values(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
    )
    size = (images.shape[-2], images.shape[-1])
    steps_per_epoch = -(-len(images) // batch_size)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for step, chosen in enumerate(order.split(batch_size)):
            progress = (epoch * steps_per_epoch + step) / (epochs * steps_per_epoch)
            optimiser.param_groups[0]["lr"] = learning_rate * schedule(progress)
            batch = images[chosen]
            if augmentation is not None:
                batch = apply_augmentation(batch, augmentation(len(batch), size, generator))
            optimiser.zero_grad()
            classification_loss(leaves, network, batch, labels[chosen]).backward()
            optimiser.step()
            if on_step is not None:
                on_step()
    return {name: value.detach() for name, value in leaves.items()}


@torch.no_grad()
def predict(theta: Theta, network: Network, images: Tensor) -> Tensor:
    """Return the class (N,) that the network gives each of the images (N, ch, h, w)."""
    block = ACCURACY_BLOCK.get(images.device.type, 1000)
    return torch.cat([network(theta, part).argmax(1) for part in images.split(block)])


def accuracy(theta: Theta, network: Network, images: Tensor, labels: Tensor) -> float:
    """Return the percentage of images (N, ch, h, w) that the network gives their label (N,)."""
    return 100 * (predict(theta, network, images) == labels).sum().item() / len(labels)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear_decay": linear_decay,
    "tenth_after_half": tenth_after_half,
    "warm_up_and_decay": warm_up_and_decay,
}
