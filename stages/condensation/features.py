"""What images are compared by: a vector of features for each.

Shapes: n = number of images, F = features of an image, image = (ch, h, w).
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from condensation.datasets import Dataset
from condensation.networks import Network, Theta, freeze_statistics, init_theta
from condensation.real_images import RealImages
from condensation.training import train, warm_up_and_decay

Features = Callable[[Dataset, torch.Generator], Callable[[Tensor], Tensor]]
"""`(dataset, generator)` -> what gives images (n, ch, h, w) uint8 their features (n, F).

Float32 and on the CPU. Those of all images together may take more memory than there is.
"""

BATCH_SIZE = 64
MOMENTUM = 0.9
WEIGHT_DECAY = 0.0005
BLOCK = 500
"""Images that are embedded at once."""

BATCH_NORM_IMAGES = 2000
"""Training images whose statistics batch norms are frozen at for embedding."""


def pixels(dataset: Dataset, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """The normalised pixels themselves."""
    return lambda images: dataset.normalise(images).flatten(1)


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

    def features(dataset: Dataset, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        theta = train(
            init_theta(network, generator, device),
            network,
            RealImages(dataset, device),
            dataset.labels.to(device),
            epochs=epochs,
            batch_size=BATCH_SIZE,
            learning_rate=learning_rate,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            generator=generator,
            schedule=warm_up_and_decay,
        )
        chosen = torch.randperm(len(dataset.labels), generator=generator)[:BATCH_NORM_IMAGES]
        seen = dataset.normalise(dataset.images[chosen].to(device))
        scored = freeze_statistics(network, theta, seen)
        return lambda images: torch.cat(
            [
                embed(scored, theta, dataset.normalise(block.to(device))).cpu()
                for block in images.split(BLOCK)
            ]
        )

    return features


@torch.no_grad()
def embed(network: Network, theta: Theta, images: Tensor) -> Tensor:
    """Return what the network's last linear layer sees of images (n, ch, h, w): (n, F)."""
    watched = copy.deepcopy(network.module)
    last = [layer for layer in watched.modules() if isinstance(layer, nn.Linear)][-1]
    seen: list[Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.func.functional_call(watched, {**theta, **network.statistics}, (images,))
    return seen[-1]
