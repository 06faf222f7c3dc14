"""Where each dataset comes from. One entry each, registered in `SOURCES`."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor


class Source(NamedTuple):
    """What is to be said of a dataset wherever images learned from it are handed on.

    Attributes:
        title: What it is.
        authors: Whom to name.
        licence: Of the images.
        address: Where it is published.
        published_mean: One number a channel, in pixel values from 0 to 1: what the published code
            of dataset condensation (Zhao, Mopuri and Bilen, ICLR 2021) normalises it with; none
            where that code does not know it.
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
    "fashion_mnist": Source(
        "Fashion-MNIST, pictures of clothes",
        "Han Xiao, Kashif Rasul and Roland Vollgraf (Zalando SE)",
        "MIT",
        "https://github.com/zalandoresearch/fashion-mnist",
        (0.2861,),
        (0.3530,),
    ),
    "svhn": Source(
        "SVHN, digits of house numbers",
        "Yuval Netzer, Tao Wang, Adam Coates, Alessandro Bissacco, Bo Wu and Andrew Y. Ng",
        "'for non-commercial use only'",
        "http://ufldl.stanford.edu/housenumbers/",
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
    ),
    "cifar10": Source(
        "CIFAR-10, photographs of ten classes",
        "Alex Krizhevsky, Vinod Nair and Geoffrey Hinton",
        "that its authors did not name (they ask to be cited)",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
    ),
    "cifar100": Source(
        "CIFAR-100, photographs of a hundred classes",
        "Alex Krizhevsky, Vinod Nair and Geoffrey Hinton",
        "that its authors did not name (they ask to be cited)",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        (0.5071, 0.4866, 0.4409),
        (0.2673, 0.2564, 0.2762),
    ),
    "tiny_imagenet": Source(
        "Tiny ImageNet, photographs of two hundred classes of ImageNet",
        "Ya Le and Xuan S. Yang, from ImageNet (Deng et al.)",
        "of ImageNet, for non-commercial research and education",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    ),
}


def source_of(dataset: str) -> Source:
    """Return what is to be said of a dataset: of one's own images no more than their name.

    Args:
        dataset: A key of `SOURCES`, or the path of one's own images.
    """
    if dataset in SOURCES:
        return SOURCES[dataset]
    return Source(f"'{short_name(dataset)}'", "images of one's own", "of its owner", "", (), ())


def published_statistics(
    dataset: str, mean: Tensor, std: Tensor
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation that published images of a dataset have.

    Args:
        dataset: A key of `SOURCES`, or the path of one's own images.
        mean: (ch,), those measured: taken where the published code does not know the dataset.
        std: (ch,), likewise.
    """
    source = source_of(dataset)
    return (
        source.published_mean or tuple(mean.tolist()),
        source.published_std or tuple(std.tolist()),
    )


def short_name(dataset: str) -> str:
    """Return what a dataset is called: of a path the last part, without the ending of a file."""
    return Path(dataset).name.removesuffix(".npz")
