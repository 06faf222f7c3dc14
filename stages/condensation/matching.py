"""The matching loss of one class, and the image gradient of all classes.

For class c at parameters theta (Zhao, Mopuri and Bilen, ICLR 2021):

    g_S = dl/dtheta (theta; S_c)     differentiable with respect to the synthetic images S_c
    g_T = dl/dtheta (theta; T_c)     a constant, from a batch T_c of real images of the class
    L_c = D(g_S, g_T) + lambda * Q_c     order 1: no Q_c; order 2: Q_c a term of curvature

With augmentation, S_c and T_c are what one draw makes of the images, the same for both.
Everything that comes from the real images, and the probes, are constants: the image gradient flows
through g_S and through what Q_c computes from the synthetic images.

The weight is relative: lambda = weight * |dD/dS_c| / |dQ_c/dS_c|, so that the image gradient of the
curvature term is `weight` times as long as that of the gradient term, for every network, distance
and form. (Their natural ratio spans five orders of magnitude.)

Shapes: K = independent sets, C = classes, S = synthetic images of a class, N = those of all, class
after class, R = real images of a class, image = (ch, h, w).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from condensation.augmentation import Augmentation, apply_augmentation
from condensation.curvature_sides import Constants, ConstantSide, CurvatureForm, SyntheticSide
from condensation.derivatives import constant_loss_gradient, loss_gradient
from condensation.devices import to_device
from condensation.distance_slopes import distance_slope
from condensation.distances import Distance
from condensation.memory import with_less_memory
from condensation.networks import Network, Theta, last_layers, part_of
from condensation.recording import Recorded
from condensation.stacked_classes import ClassInputs, ClassSlopes, stacked_slopes
from condensation.streams import Lanes
from condensation.workers import parallel_map

REAL_BLOCK = {"cpu": 32}
"""Real images that go through the network at once, by type of device: 32 stay in a CPU's cache."""

STREAMS = 4
"""Classes whose real images are at work at once on CUDA."""

_TINY = 1e-30
"""Smallest length of an image gradient that is divided by."""


@dataclass(frozen=True)
class Curvature:
    """The second-order part of a matching loss.

    Attributes:
        form: Q.
        weight: Length of Q's image gradient as a multiple of that of D; a tensor, (), is read each
            time that a recorded step runs.
        real_per_class: Real images of the class that Q takes, the first of the batch.
        layers: The last layers, whose parameters Q is about; None: all.
    """

    form: CurvatureForm
    weight: float | Tensor
    real_per_class: int
    layers: int | None = None

    def names(self, theta: Theta) -> list[str]:
        """Return the names of the parameters that Q is about."""
        return list(theta) if self.layers is None else last_layers(theta, self.layers)

    def in_one_pass(self, num_real: int, has_probes: bool, of_all: bool) -> bool:
        """Whether g_T of so many real images can come in the pass of the products for Q.

        It does where the network `has_tangents` and the engine `is_plain`.

        Args:
            num_real: Images that g_T is of.
            has_probes: Whether there are vectors to probe Q with before g_T is known.
            of_all: Whether Q is about all parameters.
        """
        same = self.real_per_class >= num_real and of_all
        return same and has_probes and self.form.with_gradient is not None


@dataclass(frozen=True)
class Engine:
    """How a matching step is calculated: the same function, but for rounding.

    Attributes:
        compiled: Whether gradients on real images and the synthetic side of all classes go by
            `torch.compile` or kernels, and the step is one CUDA graph; not on the CPU, where
            classes go side by side.
        real_block: Real images of a class that go through the network at once, and that a compiled
            graph is for, where `REAL_BLOCK` has no number; None: as many as a batch has.
        autocast: What the convolutions and products for g_T are lowered to, if to anything. All
            else is as precise as the images (on CUDA PyTorch's default, convolutions in TF32): what
            curvature takes, and the synthetic side. With it, that side goes by compiled kernels of
            the CPU if these take all of the network's blocks, unless Q is about some layers alone:
            their float32 moves an image step by up to some thousandths of its length, the lowered
            g_T by some hundredths or tenths, but the plain loop's rounding usually by no more than
            ten-thousandths, so that without it, it does not.
    """

    compiled: bool = False
    real_block: int | None = None
    autocast: torch.dtype | None = None

    @property
    def is_plain(self) -> bool:
        """Whether gradients on real images are not compiled, and as precise as the images."""
        return not self.compiled and self.autocast is None

    def block_size(self, real: Tensor) -> int:
        """Return how many of these real images (R, ch, h, w) go through the network at once."""
        return REAL_BLOCK.get(real.device.type, self.real_block or len(real))


EAGER = Engine()


class Matched(NamedTuple):
    """What a matching step gives, for each set and class.

    Attributes:
        gradient: (K, N, ch, h, w), of the sum of the losses: each class counts once, however many
            images it has.
        loss: (K, C), D, so that it can be compared between the orders.
        curvature: (K, C), Q, not weighted; 0 with order 1.
        ratio: (K, C), |dQ/dS_c| / |dD/dS_c|, of the image gradients before weighting; likewise.
        cosine: (K, C), between these two image gradients; likewise.
    """

    gradient: Tensor
    loss: Tensor
    curvature: Tensor
    ratio: Tensor
    cosine: Tensor


def draw_probes(theta: Theta, num_probes: int, generator: torch.Generator) -> list[Theta]:
    """Draw Rademacher vectors of the shape of theta: entries -1 and +1, equally likely."""
    return [
        {
            name: to_device(_signs(value.shape, generator, value.dtype), value.device)
            for name, value in theta.items()
        }
        for _ in range(num_probes)
    ]


def _signs(shape: torch.Size, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).to(dtype) * 2 - 1


def match_class(
    theta: Theta,
    network: Network,
    synthetic: Tensor,
    real: Tensor,
    class_index: int,
    distance: Distance,
    curvature: Curvature | None,
    probes: Sequence[Theta],
    augmentation: Augmentation | None = None,
    engine: Engine = EAGER,
) -> Matched:
    """Match one class of one set.

    Args:
        theta: Parameters.
        network: The network.
        synthetic: (S, ch, h, w), the class's synthetic images.
        real: (R, ch, h, w), a batch of its real images, normalised.
        class_index: The class.
        distance: D.
        curvature: Q and its weight; None is order 1.
        probes: What Q is probed with; none stands for the real gradient.
        augmentation: One draw with a single entry, applied to every real and every synthetic image
            (Siamese: Zhao and Bilen, ICML 2021, equation 5); the image gradient flows through it.
        engine: How; not compiled: this is for several threads.

    Returns:
        Without the axes K and C.
    """
    assert not engine.compiled
    images, seen, real = _augmented(synthetic, real, augmentation)
    real_labels = torch.full((len(real),), class_index, device=real.device)
    labels = torch.full((len(images),), class_index, device=images.device)
    has_slopes = curvature is None or curvature.form.slope is not None and curvature.layers is None
    in_kernels = has_slopes and engine.autocast is not None and network.in_kernels(seen)
    size = engine.block_size(seen)
    if in_kernels:
        gradient = constant_loss_gradient(theta, network, seen.detach(), labels, size)
    else:
        gradient = loss_gradient(theta, network, seen, labels)
    constants: Constants = []
    if curvature is None:
        target = _real_gradient(theta, network, real, real_labels, engine)
    else:
        target, probes, constants = _of_real(
            theta, network, real, real_labels, probes, gradient, curvature, engine
        )
    inputs = ClassInputs(seen, labels, target, [*probes], constants)
    if in_kernels:
        slopes = _by_kernels(theta, network, inputs, gradient, distance, curvature, size)
        slopes = slopes.through(seen, images)
    else:
        slopes = _by_operators(theta, network, images, inputs, gradient, distance, curvature)
    return _weighed(slopes, curvature)


def _by_operators(
    theta: Theta,
    network: Network,
    leaf: Tensor,
    inputs: ClassInputs,
    gradient: Theta,
    distance: Distance,
    curvature: Curvature | None,
) -> ClassSlopes:
    # By the leaf that the images of `inputs` come from; differentiated through `gradient`, g_S.
    images, labels, target, probes, constants = inputs
    loss = distance(gradient, target)
    (of_distance,) = torch.autograd.grad(loss, leaf, retain_graph=curvature is not None)
    if curvature is None:
        return ClassSlopes.of_order_1(of_distance, loss.detach())
    own, part = _part(theta, network, curvature)
    ours, theirs = (part_of(each, own) for each in (gradient, target))
    side = SyntheticSide(own, part, images, labels, ours, theirs, probes)
    term = curvature.form.term(side, distance, constants)
    (of_term,) = torch.autograd.grad(term, leaf)
    return ClassSlopes(of_distance, loss.detach(), of_term, term.detach())


def _by_kernels(
    theta: Theta,
    network: Network,
    inputs: ClassInputs,
    gradient: Theta,
    distance: Distance,
    curvature: Curvature | None,
    block_size: int,
) -> ClassSlopes:
    # By the images of `inputs`, which are `in_kernels`; `gradient`, g_S, is a constant.
    images, labels, target, probes, constants = inputs
    images = images.detach()
    of_distance, loss = distance_slope(
        theta, network, images, labels, gradient, target, distance, block_size
    )
    if curvature is None:
        return ClassSlopes.of_order_1(of_distance, loss)
    gap = {}
    if curvature.form.needs_gap:
        gap = {name: target[name] - value for name, value in gradient.items()}
    side = ConstantSide(theta, network, images, labels, gradient, probes, gap, block_size)
    assert curvature.form.slope is not None and curvature.layers is None
    return ClassSlopes(of_distance, loss, *curvature.form.slope(side, distance, constants))


def _weighed(slopes: ClassSlopes, curvature: Curvature | None) -> Matched:
    of_distance, loss, of_term, term = slopes
    if curvature is None:
        return Matched(of_distance, loss, term, term, term)
    combined, ratio, cosine = weigh(of_distance, of_term, curvature.weight)
    return Matched(combined, loss, term, ratio, cosine)


def match_classes(
    theta: Theta,
    network: Network,
    synthetic: Sequence[Tensor],
    real: Tensor | Sequence[Tensor],
    first_class: int,
    distance: Distance,
    curvature: Curvature | None,
    probes: Sequence[Theta],
    siamese: Sequence[Augmentation | None],
    engine: Engine = EAGER,
) -> list[Matched]:
    """Match the classes of one set, the synthetic side of all in one transform.

    The same numbers as `match_class` gives class by class.

    Args:
        theta: Parameters.
        network: The network.
        synthetic: Of each class, (S, ch, h, w).
        real: Of each class, (R, ch, h, w), normalised.
        first_class: The number of the first of the classes.
        distance: D.
        curvature: Q and its weight; None is order 1.
        probes: What Q is probed with; none stands for the real gradient.
        siamese: Of each class, the draw for its real and its synthetic images.
        engine: How.
    """
    sides, inputs = [], []
    # Streams are for a recorded step, whose memory is its own: nothing else may be given it.
    lanes = Lanes(synthetic[0].device, STREAMS if engine.compiled else 1)
    with lanes.at_once():
        for c, images in enumerate(synthetic):
            with lanes.of(c):
                leaf, seen, batch = _augmented(images, real[c], siamese[c])
                sides.append((leaf, seen))
                real_labels = torch.full((len(batch),), first_class + c, device=batch.device)
                labels = torch.full((len(images),), first_class + c, device=images.device)
                if curvature is None:
                    target = _real_gradient(theta, network, batch, real_labels, engine)
                    own: list[Theta] = []
                    constants: Constants = []
                else:
                    gradient = {}
                    if curvature.form.needs_gap:
                        gradient = loss_gradient(theta, network, seen.detach(), labels)
                    target, own, constants = _of_real(
                        theta, network, batch, real_labels, probes, gradient, curvature, engine
                    )
                inputs.append(ClassInputs(seen.detach(), labels, target, own, constants))
    form, names = None, []
    if curvature is not None:
        form, names = curvature.form, curvature.names(theta)
    found = stacked_slopes(theta, network, inputs, distance, form, names, engine.compiled)
    return [
        _weighed(slopes.through(seen, leaf), curvature)
        for (leaf, seen), slopes in zip(sides, found, strict=True)
    ]


def _augmented(
    synthetic: Tensor, real: Tensor, augmentation: Augmentation | None
) -> tuple[Tensor, Tensor, Tensor]:
    # The synthetic images as a leaf, and what the network sees of them and of the real ones.
    leaf = synthetic.detach().requires_grad_()
    if augmentation is None:
        return leaf, leaf, real
    seen, real = (apply_augmentation(side, augmentation) for side in (leaf, real))
    return leaf, seen, real


def _real_gradient(
    theta: Theta, network: Network, real: Tensor, labels: Tensor, engine: Engine
) -> Theta:
    return constant_loss_gradient(
        theta,
        network,
        real,
        labels,
        engine.block_size(real),
        compiled=engine.compiled,
        autocast=engine.autocast,
    )


def _part(theta: Theta, network: Network, curvature: Curvature) -> tuple[Theta, Network]:
    # The parameters that the term is about, and the network as a function of them.
    names = curvature.names(theta)
    if len(names) == len(theta):
        return theta, network
    return part_of(theta, names), network.holding(part_of(theta, theta.keys() - names))


def _of_real(
    theta: Theta,
    network: Network,
    real: Tensor,
    labels: Tensor,
    probes: Sequence[Theta],
    gradient: Theta,
    curvature: Curvature,
    engine: Engine,
) -> tuple[Theta, list[Theta], Constants]:
    # g_T, the vectors that Q is probed with, and its constants; `gradient` is g_S, for the forms
    # that need the gap. The vectors and constants are of the parameters that the term is about.
    own, part = _part(theta, network, curvature)
    images = slice(curvature.real_per_class)
    side = ConstantSide(
        own,
        part,
        real[images],
        labels[images],
        gradient={},
        probes=[part_of(probe, own) for probe in probes],
        gap={},
        # As many as it takes at most: a compiled graph fills a smaller batch up to the block.
        block_size=min(engine.block_size(real), curvature.real_per_class),
        compiled=engine.compiled,
    )
    with_gradient, possible = curvature.form.with_gradient, network.has_tangents and engine.is_plain
    of_all = len(own) == len(theta)
    if with_gradient and possible and curvature.in_one_pass(len(real), bool(probes), of_all):
        target, constants = with_gradient(side)
        return target, list(side.probes), constants
    target = _real_gradient(theta, network, real, labels, engine)
    side = replace(
        side,
        gradient=part_of(target, own),
        probes=side.probes or [part_of(target, own)],
        gap={
            name: target[name] - gradient[name].detach()
            for name in (own if curvature.form.needs_gap else ())
        },
    )
    return target, list(side.probes), curvature.form.constants(side)


def weigh(
    of_distance: Tensor, of_term: Tensor, weight: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the image gradient of Q to that of D, `weight` times as long.

    Args:
        of_distance: dD/dS_c, (S, ch, h, w).
        of_term: dQ_c/dS_c, likewise.
        weight: Relative.

    Returns:
        The sum, (S, ch, h, w); |dQ/dS_c| / |dD/dS_c| and the cosine between the two, ().
    """
    lengths = of_distance.norm(), of_term.norm()
    combined = of_distance + of_term * (weight * lengths[0] / lengths[1].clamp_min(_TINY))
    cosine = (of_distance * of_term).sum() / (lengths[0] * lengths[1]).clamp_min(_TINY)
    return combined, lengths[1] / lengths[0].clamp_min(_TINY), cosine


RealBatches = Tensor | Sequence[Sequence[Tensor]]
"""Of each set and class, (R, ch, h, w): a small class may have fewer images than others."""

Siamese = Sequence[Sequence[Augmentation | None]]
"""Of each set and class, the draw for its real and its synthetic images."""

MatchingStep = Callable[
    [Tensor, RealBatches, Sequence[Theta], Sequence[Sequence[Theta]], Siamese], Matched
]
"""`step(synthetic (K, N, ch, h, w), real batches, theta and probes of each set, draws)`."""


def make_matching_step(
    networks: Sequence[Network],
    distance: Distance,
    curvature: Curvature | None,
    counts: Sequence[int],
    first_class: int = 0,
    engine: Engine = EAGER,
) -> MatchingStep:
    """Return the function that matches all classes of all sets.

    On the CPU side by side, one class a thread, or fewer at once where memory runs out even with
    one real image at a time; elsewhere set after set, the synthetic side of all classes together.

    Args:
        networks: That of each set: one and the same but for frozen statistics.
        distance: D.
        curvature: Q and its weight; None is order 1.
        counts: The number of synthetic images of each class.
        first_class: The class of the first of them, where they are consecutive ones of more.
        engine: How.
    """

    def step(
        synthetic: Tensor,
        real: RealBatches,
        thetas: Sequence[Theta],
        probes: Sequence[Sequence[Theta]],
        siamese: Siamese,
    ) -> Matched:
        by_class = [images.split(list(counts)) for images in synthetic]

        def one(index: tuple[int, int]) -> Matched:
            k, c = index
            return match_class(
                thetas[k],
                networks[k],
                by_class[k][c],
                real[k][c],
                first_class + c,
                distance,
                curvature,
                probes[k],
                siamese[k][c],
                engine,
            )

        def together(k: int) -> list[Matched]:
            return match_classes(
                thetas[k],
                networks[k],
                by_class[k],
                real[k],
                first_class,
                distance,
                curvature,
                probes[k],
                siamese[k],
                engine,
            )

        sets, classes = range(len(synthetic)), range(len(counts))
        if synthetic.device.type == "cpu":
            indices = [(k, c) for k in sets for c in classes]

            def side_by_side(at_once: int) -> list[Matched]:
                return parallel_map(
                    one, indices, synthetic.device, one_thread_each=True, at_once=at_once
                )

            most = min(torch.get_num_threads(), len(indices))
            matched = with_less_memory(side_by_side, most, "cpu", "classes")
        else:
            matched = [each for k in sets for each in together(k)]
        gradients, *values = zip(*matched, strict=True)
        return Matched(
            torch.cat(gradients).view_as(synthetic),
            *(torch.stack(value).view(len(synthetic), len(counts)) for value in values),
        )

    return Recorded(step) if engine.compiled else step
