"""What a form of order 2 is, and what it takes from the real and from the synthetic images.

Notation: g_S, H_S = gradient and Hessian of the loss on the class's synthetic images, g_T, H_T on
real ones, D a distance between gradients, all at the same parameters theta.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from condensation.distances import Distance
from condensation.networks import Network, NetworkFunction, Theta

Constants = list[Theta]
"""Tensors of the shape of theta that a term takes as they are."""


@dataclass(frozen=True)
class ConstantSide:
    """What a form may take of the class's images of one side, none of it differentiable.

    Attributes:
        theta: Parameters that the term is about: all, or those of some layers.
        network: The network as a function of them.
        images: Real ones, (R, ch, h, w), normalised; or synthetic ones, (S, ch, h, w).
        labels: (R,) or (S,), all the same class.
        gradient: g_T, of the whole batch, of which `images` may be the first; empty for
            `with_gradient`; or g_S.
        probes: Vectors v of the shape of theta.
        gap: g_T - g_S, for the forms that need it.
        block_size: Images that go through the network at once.
        compiled: Whether gradients of first order are compiled.
    """

    theta: Theta
    network: Network
    images: Tensor
    labels: Tensor
    gradient: Theta
    probes: Sequence[Theta]
    gap: Theta
    block_size: int
    compiled: bool = False


@dataclass(frozen=True)
class SyntheticSide:
    """What a term is a function of.

    Attributes:
        theta: Parameters that the term is about.
        network: The network as a function of them.
        images: (S, ch, h, w), the class's synthetic images.
        labels: (S,).
        gradient: g_S, differentiable with respect to the images.
        real_gradient: g_T.
        probes: Vectors v of the shape of theta, those of the real side.
    """

    theta: Theta
    network: NetworkFunction
    images: Tensor
    labels: Tensor
    gradient: Theta
    real_gradient: Theta
    probes: Sequence[Theta]


@dataclass(frozen=True)
class CurvatureForm:
    """One form of order 2.

    Attributes:
        constants: From the real images, before anything is differentiated.
        term: Q, (), differentiable with respect to the synthetic images.
        needs_gap: Whether `constants` and `slope` take g_T - g_S.
        with_gradient: The same and g_T in one pass, if that takes less, of a network that
            `has_tangents` and with probes that do not depend on g_T.
        slope: dQ/dimages and Q as constants, of synthetic images that are `in_kernels`: without
            differentiating twice, so that kernels can be used throughout. None: by `term` always.
    """

    constants: Callable[[ConstantSide], Constants]
    term: Callable[[SyntheticSide, Distance, Constants], Tensor]
    needs_gap: bool = False
    with_gradient: Callable[[ConstantSide], tuple[Theta, Constants]] | None = None
    slope: Callable[[ConstantSide, Distance, Constants], tuple[Tensor, Tensor]] | None = None
