"""The forms of order 2: terms Q that add curvature to the matching loss of one class.

Notation: g_S, H_S = gradient and Hessian of the loss on the class's synthetic images, g_T, H_T on
real ones, G_T the Gauss-Newton matrix, D a distance between gradients, all at the same parameters
theta. What comes from the real images alone is a constant; the image gradient flows through what
is computed from the synthetic images.

A form has two parts, so that the second can be compiled and differentiated on its own:
`constants`, computed once for a step, and `term`, Q as a function of the synthetic images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condensation.derivatives import (
    constant_gauss_newton_vector_product,
    constant_hessian_vector_product,
    constant_loss_gradient,
    hessian_vector_product,
    inner_product,
    loss_gradient,
)
from condensation.distances import Distance
from condensation.networks import Network, NetworkFunction, Theta

LOOKAHEAD_STEP = 0.01
"""Length eta of the SGD step of `lookahead`: the learning rate of the published inner loop."""

Constants = list[Theta]
"""Tensors of the shape of theta that a term takes as they are."""


@dataclass(frozen=True)
class RealSide:
    """What a form may take from the real images of the class.

    Attributes:
        theta: Parameters.
        network: The network.
        images: (R, ch, h, w), normalised.
        labels: (R,), all the same class.
        gradient: g_T.
        probes: Vectors v of the shape of theta.
        gap: g_T - g_S as a constant, for the forms that need it.
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
        theta: Parameters.
        network: The network.
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
        needs_gap: Whether `constants` takes g_T - g_S.
    """

    constants: Callable[[RealSide], Constants]
    term: Callable[[SyntheticSide, Distance, Constants], Tensor]
    needs_gap: bool = False


def real_products(real: RealSide) -> Constants:
    """Return H_T v for each probe v."""
    return [
        constant_hessian_vector_product(
            real.theta, real.network, real.images, real.labels, probe, real.block_size
        )
        for probe in real.probes
    ]


def match_products(
    synthetic: SyntheticSide, distance: Distance, real_products: Constants
) -> Tensor:
    """Form `hvp`: the mean over probes v of D(H_S v, H_T v).

    With Rademacher probes and the squared Euclidean distance its expectation is the squared
    Frobenius norm of H_S - H_T (Hutchinson, 1990). Constant: v and H_T v. H_S v is differentiated
    with respect to the images, a third derivative of the loss.
    """
    distances = [
        distance(
            hessian_vector_product(
                synthetic.theta, synthetic.network, synthetic.images, synthetic.labels, probe
            ),
            product,
        )
        for probe, product in zip(synthetic.probes, real_products, strict=True)
    ]
    return torch.stack(distances).mean()


def step_along_real_gradient(real: RealSide) -> Constants:
    """Return theta - eta g_T, and the gradient on the real images there."""
    ahead = {
        name: value - LOOKAHEAD_STEP * real.gradient[name] for name, value in real.theta.items()
    }
    gradient = constant_loss_gradient(
        ahead, real.network, real.images, real.labels, real.block_size, compiled=real.compiled
    )
    return [ahead, gradient]


def match_gradients_ahead(synthetic: SyntheticSide, distance: Distance, ahead: Constants) -> Tensor:
    """Form `lookahead`: D of the two gradients at theta - eta g_T, one SGD step ahead.

    As g(theta - eta g_T) = g - eta H g_T + O(eta^2), it matches H g_T to first order, without a
    third derivative. Constant: the point and the real gradient there.
    """
    theta, real_gradient = ahead
    gradient = loss_gradient(theta, synthetic.network, synthetic.images, synthetic.labels)
    return distance(gradient, real_gradient)


def hessian_of_gap(real: RealSide) -> Constants:
    """Return H_T v for the gap v = g_T - g_S."""
    return [
        constant_hessian_vector_product(
            real.theta, real.network, real.images, real.labels, real.gap, real.block_size
        )
    ]


def gauss_newton_of_gap(real: RealSide) -> Constants:
    """Return G_T v for the gap v = g_T - g_S."""
    return [
        constant_gauss_newton_vector_product(
            real.theta, real.network, real.images, real.labels, real.gap, real.block_size
        )
    ]


def weigh_gap(synthetic: SyntheticSide, distance: Distance, weighed: Constants) -> Tensor:
    """Forms `quadratic` and `ggn`: v' M v with the gap v = g_T - g_S, M = H_T or G_T.

    The gap weighted by the curvature of the real loss. `quadratic` is the term of Cartwright's
    GradientMatching (whose code detaches both factors, so that it moves no image). H_T is
    indefinite and Q may be negative; G_T makes it a squared norm (Schraudolph, "Fast Curvature
    Matrix-Vector Products", 2002). M is a constant, v is not: with the constant w = M v,
    2 <v, w> minus <v, w> as a constant has the value v' M v and, as M is symmetric, the gradient
    2 (dv)' M v.
    """
    (product,) = weighed
    gap = {
        name: synthetic.real_gradient[name] - value for name, value in synthetic.gradient.items()
    }
    aligned = inner_product(gap, product)
    return 2 * aligned - aligned.detach()


CURVATURE_FORMS: dict[str, CurvatureForm] = {
    "hvp": CurvatureForm(real_products, match_products),
    "lookahead": CurvatureForm(step_along_real_gradient, match_gradients_ahead),
    "quadratic": CurvatureForm(hessian_of_gap, weigh_gap, needs_gap=True),
    "ggn": CurvatureForm(gauss_newton_of_gap, weigh_gap, needs_gap=True),
}
