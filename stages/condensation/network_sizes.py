"""Whether every network of the settings can take the images, before any of them is trained."""

from condensation.networks import build_network
from condensation.params import Params


def require_networks(params: Params, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Refuse images that a network of the settings cannot take, whichever stage would use it.

    Args:
        params: The settings: `network`, and those of `evaluate.networks`.
        image_shape: (ch, h, w) of the prepared images.
        num_classes: C.

    Raises:
        ValueError: Naming the network, the size and what it takes.
    """
    for name in (params.network, *params.evaluate.networks):
        build_network(name, image_shape, num_classes, params.networks[name])
