"""What images are compared by: a vector of features for each.

Shapes: N = number of images, F = features of an image.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from condensation.datasets import Dataset
from condensation.networks import Network, Theta, init_theta
from condensation.training import train, warm_up_and_decay

Features = Callable[[Dataset, torch.Generator], Tensor]
"""`(dataset, generator)` -> (N, F) float32, on the CPU."""

BATCH_SIZE = 64
MOMENTUM = 0.9
WEIGHT_DECAY = 0.0005
BLOCK = 500
"""Images that are embedded at once."""


def pixels(dataset: Dataset, generator: torch.Generator) -> Tensor:
    """The normalised pixels themselves."""
    return dataset.normalise(dataset.images).flatten(1)


def embedding(
    network: Network, epochs: int, learning_rate: float, device: torch.device
) -> Features:
    """Return the features that a network classifies by, once it is trained on the dataset.

    What its last linear layer sees, as the coresets of the literature are chosen by (Sener and
    Savarese, ICLR 2018). Without training, the layer's gradient at a fresh network is nearly a
    multiple of it, the same for all images of a class: the choice is then one by gradients.

    Args:
        network: The network.
        epochs: Passes over the images, from 0.
        learning_rate: The peak; SGD with momentum, as for the ceilings.
        device: Where it is trained.
    """

    def features(dataset: Dataset, generator: torch.Generator) -> Tensor:
        theta = train(
            init_theta(network, generator, device),
            network,
            dataset.normalise(dataset.images).to(device),
            dataset.labels.to(device),
            epochs=epochs,
            batch_size=BATCH_SIZE,
            learning_rate=learning_rate,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            generator=generator,
            schedule=warm_up_and_decay,
        )
        blocks = dataset.images.split(BLOCK)
        embedded = [
            embed(network, theta, dataset.normalise(block).to(device)).cpu() for block in blocks
        ]
        return torch.cat(embedded)

    return features


@torch.no_grad()
def embed(network: Network, theta: Theta, images: Tensor) -> Tensor:
    """Return what the network's last linear layer sees of images (N, ch, h, w): (N, F)."""
    watched = copy.deepcopy(network.module)
    last = [layer for layer in watched.modules() if isinstance(layer, nn.Linear)][-1]
    seen: list[Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.func.functional_call(watched, {**theta, **network.statistics}, (images,))
    return seen[-1]
