"""How condensed images are judged: the published evaluations, one function each, in `PROTOCOLS`.

Figures can be compared where they were measured alike. A protocol is a name for all that has to be
alike in the training of a fresh network; whatever differs from it is called `custom`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

DIGITS = frozenset({"mnist", "svhn"})
"""Data sets of which the mirror image is another thing."""

CUSTOM = "custom"
"""The name of what is none of the protocols."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a fresh network is trained on condensed images before it is tested on real ones.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images in a step.
        learning_rate: Of SGD; a tenth of it after half of the steps.
        momentum: Of SGD.
        weight_decay: Of SGD.
        augmentation: A name in `AUGMENTATIONS`.
    """

    epochs: int
    batch_size: int = 256
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0005
    augmentation: str


def dc(dataset: str) -> Protocol:
    """Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021.

    MNIST is augmented by a crop, a scale or a rotation of each image and trained on for 1000
    epochs; other data are not, and are trained on for 300. Differences: the published code trains
    one epoch more, and evaluates its ConvNet with batch norm with crops and noise.
    """
    if dataset == "mnist":
        return Protocol(epochs=1000, augmentation="crop_scale_rotate")
    return Protocol(epochs=300, augmentation="none")


def dsa(dataset: str) -> Protocol:
    """Zhao and Bilen, "... with Differentiable Siamese Augmentation", ICML 2021.

    1000 epochs with color, crop, cutout, flip, scale and rotate; digits are not flipped.
    """
    augmentation = "dsa_without_flip" if dataset in DIGITS else "dsa"
    return Protocol(epochs=1000, augmentation=augmentation)


def choose_protocol(
    name: str, dataset: str, **settings: int | float | str | None
) -> tuple[str, Protocol]:
    """Return a protocol with some settings of one's own, and what it is to be called then.

    Args:
        name: A key of `PROTOCOLS`.
        dataset: The data set's name.
        **settings: Attributes of `Protocol`; None is the protocol's own value.

    Returns:
        The protocol's name, or `custom` if one setting is another; and the settings.
    """
    published = PROTOCOLS[name](dataset)
    own = {key: value for key, value in settings.items() if value is not None}
    chosen = dataclasses.replace(published, **own)  # type: ignore[arg-type]
    return (name if chosen == published else CUSTOM), chosen


PROTOCOLS: dict[str, Callable[[str], Protocol]] = {"dc": dc, "dsa": dsa}
