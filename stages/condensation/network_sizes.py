"""Whether every network of the settings can take the images, before any of them is trained."""

from collections.abc import Mapping

from condensation.networks import build_network


def refusal(
    networks: Mapping[str, Mapping[str, int | float | str]],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> str | None:
    """Return why one of the networks cannot take the images; None where all can.

    Args:
        networks: By name, their settings.
        image_shape: (ch, h, w).
        num_classes: C.
    """
    try:
        for name, options in networks.items():
            build_network(name, image_shape, num_classes, options)
    except ValueError as error:
        return str(error)
    return None
