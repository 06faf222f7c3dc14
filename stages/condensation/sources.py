"""Where each dataset comes from. One entry each, registered in `SOURCES`."""

from typing import NamedTuple


class Source(NamedTuple):
    """What is to be said of a dataset wherever images learned from it are handed on.

    Attributes:
        title: What it is.
        authors: Whom to name.
        licence: Of the images.
        address: Where it is published.
        published_mean: One number a channel, in pixel values from 0 to 1: what the published code
            of dataset condensation (Zhao, Mopuri and Bilen, ICLR 2021) normalises it with.
        published_std: Likewise.
    """

    title: str
    authors: str
    licence: str
    address: str
    published_mean: tuple[float, ...]
    published_std: tuple[float, ...]


SOURCES: dict[str, Source] = {
    "mnist": Source(
        "MNIST, handwritten digits",
        "Yann LeCun, Corinna Cortes and Christopher J. C. Burges",
        "CC BY-SA 3.0",
        "http://yann.lecun.com/exdb/mnist/",
        (0.1307,),
        (0.3081,),
    ),
}
