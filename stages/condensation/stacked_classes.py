"""The synthetic side of all classes as one transform: for devices that want few, large operators.

The same numbers as `match_class`, class after class. `torch.func.vmap` over the classes of a nested
gradient; what is random or varies (probes, augmentation) is drawn outside and passed in, so that
the whole can be compiled without a break.

Shapes: C = classes, S = synthetic images of each, the same number; image = (ch, h, w).
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from condensation.curvature_sides import Constants, CurvatureForm, SyntheticSide
from condensation.derivatives import loss_gradient
from condensation.distances import Distance
from condensation.graphs import one_graph
from condensation.memory import with_less_memory
from condensation.networks import Network, Theta, part_of

MOST_SHAPES = 4
"""Numbers of classes and of images of each that are compiled for, each by itself, and with order 2
twice: PyTorch keeps no more than eight graphs of one function."""
_shapes: dict[tuple[Any, ...], set[tuple[int, int]]] = {}  # what is compiled: for which


class ClassInputs(NamedTuple):
    """What one class's matching loss takes, beside theta; stacked, of all classes.

    Attributes:
        images: (S, ch, h, w), as the network sees them.
        labels: (S,).
        real_gradient: g_T.
        probes: Vectors v of the shape of what the form of order 2 is about.
        constants: What the form of order 2 computed from the real images.
    """

    images: Tensor
    labels: Tensor
    real_gradient: Theta
    probes: list[Theta]
    constants: Constants


class ClassSlopes(NamedTuple):
    """Two terms of the matching loss and their slopes; with order 1, zeros for the second.

    Attributes:
        of_distance: dD/dimages, (S, ch, h, w).
        distance: D, ().
        of_term: dQ/dimages, (S, ch, h, w).
        term: Q, ().
    """

    of_distance: Tensor
    distance: Tensor
    of_term: Tensor
    term: Tensor

    @classmethod
    def of_order_1(cls, of_distance: Tensor, distance: Tensor) -> "ClassSlopes":
        """Return them without a second term."""
        return cls(of_distance, distance, torch.zeros_like(of_distance), torch.zeros_like(distance))

    def through(self, seen: Tensor, leaf: Tensor) -> "ClassSlopes":
        """Return them by the leaf that the images `seen` by the network come from."""
        if seen is leaf:
            return self
        of_distance, of_term = (
            torch.autograd.grad(seen, leaf, slope, retain_graph=True)[0]
            for slope in (self.of_distance, self.of_term)
        )
        return self._replace(of_distance=of_distance, of_term=of_term)


Transform = Callable[[Theta, Theta, ClassInputs], ClassSlopes]
"""`(theta, statistics, inputs of C classes) -> slopes of C classes`."""


def stacked_transform(
    module: nn.Module,
    distance: Distance,
    form: CurvatureForm | None,
    names: tuple[str, ...],
) -> Transform:
    """Return the transform of all classes.

    Args:
        module: The network's architecture.
        distance: D.
        form: Q; None is order 1.
        names: Of the parameters that Q is about.
    """

    def call(statistics: Theta, theta: Theta, images: Tensor) -> Tensor:
        logits: Tensor = functional_call(module, {**theta, **statistics}, (images,))
        return logits

    def of_class(theta: Theta, statistics: Theta, inputs: ClassInputs) -> ClassSlopes:
        network = partial(call, statistics)
        images, labels, real_gradient, probes, constants = inputs

        def first(images: Tensor) -> Tensor:
            return distance(loss_gradient(theta, network, images, labels), real_gradient)

        def second(images: Tensor) -> Tensor:
            assert form is not None
            gradient = loss_gradient(theta, network, images, labels)
            fixed = {name: value for name, value in theta.items() if name not in names}
            own, ours, theirs = (part_of(each, names) for each in (theta, gradient, real_gradient))
            part = partial(call, {**statistics, **fixed})
            side = SyntheticSide(own, part, images, labels, ours, theirs, probes)
            return form.term(side, distance, constants)

        of_distance, loss = grad_and_value(first)(images)
        if form is None:
            return ClassSlopes.of_order_1(of_distance, loss)
        return ClassSlopes(of_distance, loss, *grad_and_value(second)(images))

    transform: Transform = vmap(of_class, in_dims=(None, None, 0))
    return transform


@cache
def compiled_transform(
    module: nn.Module,
    distance: Distance,
    form: CurvatureForm | None,
    names: tuple[str, ...],
    backend: str = "inductor",
) -> Transform:
    """Return the same as one graph; the same arguments give the same one, compiled once.

    Args:
        module: The network's architecture.
        distance: D.
        form: Q; None is order 1.
        names: Of the parameters that Q is about.
        backend: Of `torch.compile`.
    """
    return one_graph(stacked_transform(module, distance, form, names), backend)


def stack(inputs: Sequence[ClassInputs]) -> ClassInputs:
    """Put the inputs of several classes, with as many images each, into one."""
    stacked: ClassInputs = torch.utils._pytree.tree_map(
        lambda *values: torch.stack(values), *inputs
    )
    return stacked


def stacked_slopes(
    theta: Theta,
    network: Network,
    inputs: Sequence[ClassInputs],
    distance: Distance,
    form: CurvatureForm | None,
    names: Sequence[str],
    compiled: bool,
) -> list[ClassSlopes]:
    """Return the slopes of each class: one transform for all that have equally many images.

    Where memory runs out, one for some of them at a time. A part is not compiled: PyTorch keeps a
    graph for each size of it, and has no room for many.

    Args:
        theta: Parameters.
        network: The network.
        inputs: Of each class.
        distance: D.
        form: Q; None is order 1.
        names: Of the parameters that Q is about.
        compiled: Whether by `torch.compile`. With frozen statistics the network is another one at
            each step, and would be compiled each time: it is not. Nor are more than `MOST_SHAPES`,
            of all calls.
    """
    slopes: dict[int, ClassSlopes] = {}
    groups: dict[int, list[int]] = {}
    for place, each in enumerate(inputs):
        groups.setdefault(len(each.images), []).append(place)
    transformed = network.module, distance, form, tuple(names)

    def take_graph(num_classes: int, num_images: int) -> bool:
        if not compiled or network.statistics:
            return False
        known = _shapes.setdefault(transformed, set())
        if len(known) < MOST_SHAPES:
            known.add((num_classes, num_images))
        return (num_classes, num_images) in known

    def in_parts(places: Sequence[int], size: int) -> dict[int, ClassSlopes]:
        whole = size >= len(places) and take_graph(len(places), len(inputs[places[0]].images))
        transform = (compiled_transform if whole else stacked_transform)(*transformed)
        found: dict[int, ClassSlopes] = {}
        for part in (places[begin : begin + size] for begin in range(0, len(places), size)):
            of_part = transform(theta, network.statistics, stack([inputs[i] for i in part]))
            found |= {
                place: ClassSlopes(*(value[i] for value in of_part)) for i, place in enumerate(part)
            }
        return found

    for places in groups.values():
        slopes |= with_less_memory(
            partial(in_parts, places),
            len(places),
            inputs[0].images.device.type,
            "classes of synthetic images",
        )
    return [slopes[place] for place in range(len(inputs))]
