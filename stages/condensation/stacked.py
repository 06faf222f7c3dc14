"""The gradients of K networks side by side, of their parameters stacked.

A step of a small network on a few images is short: most of it is the way to each operator. One
operator on stacked parameters takes that way once for all networks. What is large enough to keep a
core busy is no faster so, and has fused operators that stacking cannot use: it goes one by one.

Shapes: K = networks, B = images in a step, image = (ch, h, w), theta = (K, *p) each.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from condensation.derivatives import classification_loss, constant_loss_gradient
from condensation.fused import FusedSequential
from condensation.networks import Network, Theta, init_theta
from condensation.precisions import lowered
from condensation.randomness import generator
from condensation.workers import parallel_map

Gradient = Callable[[Theta, Tensor, Tensor], Theta]
"""`(theta (K, *p), images (K, B, ch, h, w), labels (K, B)) -> gradient (K, *p)` of each loss."""

MULTIPLY_ADDS = {"cpu": 20_000_000}
"""Of a forward pass of B images, up to which stacking is faster, by type of device. Measured on an
AMD EPYC with one thread: LeNet at B = 30 (13 million) 9 % faster, at B = 100 (42 million) 19 %
slower."""
MULTIPLY_ADDS_ELSEWHERE = 1_000_000_000
"""On an accelerator few fill it. On an H100, with some steps as one graph, a step of each of twelve
networks side by side and of one alone: LeNet at B = 100 0.35 and 0.46 ms, ConvNet at B = 10
(484 million) 0.45 and 0.61, at B = 100 2.1 and 0.76, as of the stacked filters comes a grouped
convolution."""

NETWORKS_AT_ONCE = {"cpu": 8}
"""By type of device, elsewhere 32: more leave a core's cache and gain nothing."""

IMAGES_AT_ONCE = 2560
"""K B at most, for the memory of an accelerator."""

PART = 50
"""Images that go through a network of fused blocks at once, on one thread. ConvNet on 100 images,
AMD EPYC, by kernels in bfloat16: 47 ms by operators on two threads, 33 by two parts (in float32 122
and 77), and on one thread 60 by parts of 50, 66 by parts of 25, where the whole takes 59."""

TRACED_FROM = 100
"""Steps from which recording the operators pays."""


@lru_cache(maxsize=1)
def one_gradient(network: Network, autocast: torch.dtype | None = None) -> Gradient:
    """Return the gradient of one network by itself (K = 1), by its fused operators.

    Args:
        network: The network.
        autocast: What convolutions and products are lowered to (`lowered`), if to anything.
    """
    function = lowered(network.first_order, autocast)

    def gradient(theta: Theta, images: Tensor, labels: Tensor) -> Theta:
        leaves = {name: value[0].requires_grad_() for name, value in theta.items()}
        with torch.enable_grad():
            loss = classification_loss(leaves, function, images[0], labels[0])
            slopes = torch.autograd.grad(loss, list(leaves.values()))
        return {name: slope[None] for name, slope in zip(leaves, slopes, strict=True)}

    return gradient


def gradient_in_parts(network: Network, autocast: torch.dtype | None = None) -> Gradient:
    """Return the gradient of one network by itself (K = 1) by parts of a batch, on the CPU.

    Each is computed by one thread, so that the number of threads changes nothing.

    Args:
        network: The network, without batch norms: an image counts by itself.
        autocast: As of `one_gradient`.
    """
    whole = one_gradient(network, autocast)

    def gradient(theta: Theta, images: Tensor, labels: Tensor) -> Theta:
        def of_part(part: tuple[Tensor, Tensor]) -> Theta:
            return whole(theta, *part)

        parts = [*zip(images.split(PART, 1), labels.split(PART, 1), strict=True)]
        slopes = parallel_map(of_part, parts, images.device, one_thread_each=True)
        total = {name: torch.zeros_like(value) for name, value in theta.items()}
        for (_, own), slope in zip(parts, slopes, strict=True):
            for name, value in total.items():
                value.add_(slope[name], alpha=own.shape[1] / labels.shape[1])
        return total

    return gradient


def goes_in_parts(network: Network, device: torch.device) -> bool:
    """Whether `gradient_in_parts` is for this network: it has fused blocks, and no batch norms."""
    in_blocks = isinstance(network.fused, FusedSequential) and not network.batch_norms
    return device.type == "cpu" and in_blocks


@lru_cache(maxsize=1)
def compiled_gradient_of_one(
    network: Network, batch_size: int, autocast: torch.dtype | None = None
) -> Gradient:
    """Return the gradient of one network by itself (K = 1), by compiled graphs; a constant.

    Args:
        network: The network, without batch norms.
        batch_size: B at most.
        autocast: As of `one_gradient`.
    """

    def gradient(theta: Theta, images: Tensor, labels: Tensor) -> Theta:
        only = {name: value[0] for name, value in theta.items()}
        slopes = constant_loss_gradient(
            only, network, images[0], labels[0], batch_size, compiled=True, autocast=autocast
        )
        return {name: slope[None] for name, slope in slopes.items()}

    return gradient


class StackedGradient:
    """The gradient of K networks by `torch.func.vmap`, as the operators that it comes to.

    `vmap` and `grad` find these operators anew each time, in Python; `record` keeps them for
    arguments of given shapes, with the same result. To be called before threads are begun: it
    changes how modules are called while it runs.
    """

    def __init__(self, network: Network) -> None:
        """Nothing is recorded yet."""

        def loss(theta: Theta, images: Tensor, labels: Tensor) -> Tensor:
            return classification_loss(theta, network, images, labels)

        self._network = network
        self._anew: Gradient = torch.func.vmap(torch.func.grad(loss))
        self._recorded: dict[torch.Size, Gradient] = {}

    def record(
        self,
        shapes: Iterable[tuple[int, int]],
        image_shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        """Record the operators.

        Args:
            shapes: (K, B) that will be seen.
            image_shape: (ch, h, w).
            device: Where the tensors will be.
        """
        theta = init_theta(self._network, generator(0), device)
        for networks, size in shapes:
            images = torch.zeros(networks, size, *image_shape, device=device)
            labels = torch.zeros(networks, size, dtype=torch.int64, device=device)
            stacked = {name: torch.stack([value] * networks) for name, value in theta.items()}
            graph: Any = make_fx(self._anew)(stacked, images, labels)
            graph.graph.eliminate_dead_code()
            graph.recompile()
            self._recorded[images.shape] = graph

    @torch.no_grad()
    def __call__(self, theta: Theta, images: Tensor, labels: Tensor) -> Theta:
        """Return the gradient (K, *p) of each network's mean cross-entropy."""
        return self._recorded.get(images.shape, self._anew)(theta, images, labels)


def arrange(
    lengths: Sequence[int],
    network: Network,
    image_shape: tuple[int, int, int],
    device: torch.device,
    *,
    epochs: int,
    batch_size: int,
) -> tuple[list[int], Gradient]:
    """Choose which networks are trained side by side, as is fastest.

    Args:
        lengths: Of each network, the number of images that it is trained on.
        network: The architecture.
        image_shape: (ch, h, w).
        device: Where.
        epochs: Passes over the images.
        batch_size: Images in a step.

    Returns:
        How many networks to take for each group, in the order of the lengths; and the gradient for
        a group of any of these sizes.
    """
    together, alone = StackedGradient(network), one_gradient(network)
    sizes: list[int] = []
    shapes = set()
    for length, alike in itertools.groupby(lengths):
        batch = min(length, batch_size)
        groups = group_sizes(len(list(alike)), network, image_shape, batch, device.type)
        sizes += groups
        if epochs * -(-length // batch) >= TRACED_FROM:
            shapes |= {
                (number, images)
                for number in groups
                for images in (batch, length % batch or batch)
                if number > 1
            }
    together.record(sorted(shapes), image_shape, device)

    def gradient(theta: Theta, images: Tensor, labels: Tensor) -> Theta:
        return (together if len(labels) > 1 else alone)(theta, images, labels)

    return sizes, gradient


def group_sizes(
    number: int, network: Network, image_shape: tuple[int, int, int], size: int, device: str
) -> list[int]:
    """Return how many networks to train side by side: sizes that sum to their number.

    The choice does not depend on the number of threads, so that the results do not.

    Args:
        number: Of networks.
        network: The network.
        image_shape: (ch, h, w).
        size: B.
        device: The type of device.
    """
    most = min(NETWORKS_AT_ONCE.get(device, 32), max(1, IMAGES_AT_ONCE // size))
    largest = MULTIPLY_ADDS.get(device, MULTIPLY_ADDS_ELSEWHERE)
    if size * multiply_adds(network, image_shape) > largest:
        most = 1
    groups = -(-number // most)
    if device == "cpu":  # an even number of threads has as many to do each
        groups = min(number, groups + groups % 2)
    return [number // groups + (index < number % groups) for index in range(groups)]


def multiply_adds(network: Network, image_shape: tuple[int, int, int]) -> int:
    """Return the multiplications of a forward pass of one image, in convolutions and products."""
    counted = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counted.append(output.numel() * layer.weight[0].numel())

    layers = [
        layer for layer in network.module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network.module(torch.empty(1, *image_shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(counted)
