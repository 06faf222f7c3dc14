"""What several tests share: tiny networks and a tiny dataset, seeded; oracles are in float64."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from condensation.datasets import Dataset
from condensation.networks import Network, Theta, build_network, init_theta
from condensation.randomness import generator

# Operators as small as the tests' are fastest on one thread, by far where others use the processor.
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # what is written in Triton runs on the CPU


OF_COMPILATION = (
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:TensorFloat32",
    r"ignore:\s*Online softmax",
)
"""Warnings that PyTorch gives when it compiles for a GPU."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Leave out what needs a GPU where there is none; there, let the compiler's warnings pass."""
    if item.get_closest_marker("cuda"):
        missing = not torch.cuda.is_available()
        item.add_marker(pytest.mark.skipif(missing, reason="needs CUDA"))
        item.add_marker(pytest.mark.filterwarnings(*OF_COMPILATION))


ROOT = Path(__file__).resolve().parent.parent
HANGS = 240
"""Seconds after which a command that a test has started hangs: the import of PyTorch alone takes
two minutes where other work takes the processor. Below the 300 that torchrun waits for its own."""
NUM_CLASSES = 3
IMAGE_SHAPE = (1, 28, 28)
SMALL_SHAPE = (1, 16, 16)
"""For what takes time that grows with the square of the parameters."""

TINY_OPTIONS: dict[str, dict[str, int | float | str]] = {
    "convnet": {"width": 4, "depth": 2},
    "mlp": {"width": 6},
    "alexnet": {"width": 2, "activation": "softplus"},
    "vgg11": {"width": 2, "activation": "softplus"},
    "resnet18": {"width": 2, "activation": "softplus"},
}
"""Options that make a registered network small; one that is not listed is small enough.

The deep ones are smooth: a finite difference over so many units would step over kinks.
"""


def tiny_network(
    name: str, image_shape: tuple[int, int, int] = IMAGE_SHAPE, **options: int | float | str
) -> tuple[Network, Theta]:
    """Build a small network and draw its parameters, in float64."""
    network = build_network(
        name, image_shape, NUM_CLASSES, {**TINY_OPTIONS.get(name, {}), **options}
    )
    theta = init_theta(network, generator(0, "theta"), "cpu")
    return network, {key: value.double() for key, value in theta.items()}


def random_images(
    *shape: int, stream: str, image_shape: tuple[int, int, int] = IMAGE_SHAPE
) -> Tensor:
    """Draw normalised images (*shape, ch, h, w) in float64."""
    return torch.randn(*shape, *image_shape, generator=generator(1, stream), dtype=torch.float64)


def central_difference(function: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> Tensor:
    """Return the derivative of `function` at a point in a direction, to about 1e-9 in float64."""
    step = 1e-6
    return (function(at + step * along) - function(at - step * along)) / (2 * step)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of each value of params.yaml; a list is one value."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.fixture
def tiny_dataset() -> Dataset:
    """Three unequal classes of 5, 7 and 9 random images."""
    labels = torch.tensor([0] * 5 + [1] * 7 + [2] * 9)
    labels = labels[torch.randperm(21, generator=generator(0, "order"))]
    pixels = torch.randint(0, 256, (21, *IMAGE_SHAPE), generator=generator(0, "pixels"))
    names = ("zero", "one", "two")
    return Dataset(pixels.to(torch.uint8), labels, torch.tensor([0.5]), torch.tensor([0.3]), names)


def environment_of_commands() -> dict[str, str]:
    """Return the environment for git and dvc in a temporary repository: nobody's own settings."""
    identity = {
        f"GIT_{role}_{part}": "tests@example.org"
        for role in ("AUTHOR", "COMMITTER")
        for part in ("NAME", "EMAIL")
    }
    return {
        **os.environ,
        **identity,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "DVC_NO_ANALYTICS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }


@pytest.fixture(scope="session")
def command_environment() -> dict[str, str]:
    """The environment for git and dvc, once for all tests."""
    return environment_of_commands()
