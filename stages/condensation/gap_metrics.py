"""Forms of order 2 that weigh the gap v = g_T - g_S between the gradients: Q = v' M v.

M comes from the curvature of the real loss and is a constant, v is not:

    quadratic     M = H_T, the Hessian
    ggn           M = G_T, the Gauss-Newton matrix
    ggn_diagonal  M = (|diag G_T| + damping)^-1
    ggn_inverse   M = (G_T + damping)^-1

The first two count the gap most where the loss is curved, the last two least: there a step of SGD
is too long rather than in a wrong direction.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from condensation.curvature_sides import Constants, ConstantSide, CurvatureForm, SyntheticSide
from condensation.derivatives import (
    constant_gauss_newton_vector_product,
    constant_hessian_vector_product,
    inner_product,
)
from condensation.distance_slopes import slope_along
from condensation.distances import Distance
from condensation.networks import Theta

DIAGONAL_DAMPING = 1.0
"""Damping of `ggn_diagonal`, as a multiple of the mean of the diagonal."""

INVERSE_DAMPING = 0.1
"""Damping of `ggn_inverse`, as a multiple of the curvature along the real gradient."""

CG_ITERATIONS = 12
"""Of conjugate gradients: with the damping they bring the error below 1 % (fresh MLP and LeNet, 64
images of a digit, against 80 iterations: at most 0.1 %, two seeds each)."""

_TINY = 1e-30
"""Smallest square that is divided by."""


def hessian_of_gap(real: ConstantSide) -> Constants:
    """Return H_T v."""
    return [
        constant_hessian_vector_product(
            real.theta, real.network, real.images, real.labels, real.gap, real.block_size
        )
    ]


def gauss_newton_of_gap(real: ConstantSide) -> Constants:
    """Return G_T v."""
    return [_gauss_newton_product(real, real.gap)]


def gap_over_diagonal(real: ConstantSide) -> Constants:
    """Return v / (|d| + damping), d the diagonal of G_T.

    Estimated from the probes p as sum p * G_T p / sum p * p, of each parameter (Bekas, Kokiopoulou
    and Saad, "An Estimator for the Diagonal of a Matrix", 2007).
    """
    products = [_gauss_newton_product(real, probe) for probe in real.probes]
    pairs = list(zip(real.probes, products, strict=True))
    diagonal = {
        name: (
            torch.stack([probe[name] * product[name] for probe, product in pairs]).sum(0)
            / torch.stack([probe[name].square() for probe in real.probes]).sum(0).clamp_min(_TINY)
        ).abs()
        for name in real.theta
    }
    flat = torch.cat([value.flatten() for value in diagonal.values()])
    damping = DIAGONAL_DAMPING * flat.mean().clamp_min(_TINY)
    return [{name: value / (diagonal[name] + damping) for name, value in real.gap.items()}]


def inverse_gauss_newton_of_gap(real: ConstantSide) -> Constants:
    """Return (G_T + damping)^-1 v, by conjugate gradients.

    The length that a natural gradient gives the gap (Martens, "New Insights and Perspectives on the
    Natural Gradient Method", 2020, section 6).
    """
    curved = inner_product(real.gradient, _gauss_newton_product(real, real.gradient))
    square = inner_product(real.gradient, real.gradient).clamp_min(_TINY)
    damping = INVERSE_DAMPING * curved / square

    def damped(vector: Theta) -> Theta:
        product = _gauss_newton_product(real, vector)
        return {name: product[name] + damping * value for name, value in vector.items()}

    return [conjugate_gradients(damped, real.gap, CG_ITERATIONS)]


def conjugate_gradients(product: Callable[[Theta], Theta], target: Theta, iterations: int) -> Theta:
    """Solve A x = b for a positive definite A, with no look at the numbers in between.

    Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.

    Args:
        product: x -> A x.
        target: b.
        iterations: As many are made, each takes one product.
    """
    solution = {name: torch.zeros_like(value) for name, value in target.items()}
    residual, direction = target, target
    square = inner_product(residual, residual)
    for _ in range(iterations):
        image = product(direction)
        length = square / inner_product(direction, image).clamp_min(_TINY)
        solution = _moved(solution, length, direction)
        residual = _moved(residual, -length, image)
        before, square = square, inner_product(residual, residual)
        direction = _moved(residual, square / before.clamp_min(_TINY), direction)
    return solution


def _moved(start: Theta, length: Tensor, direction: Theta) -> Theta:
    return {name: value + length * direction[name] for name, value in start.items()}


def _gauss_newton_product(real: ConstantSide, vector: Theta) -> Theta:
    return constant_gauss_newton_vector_product(
        real.theta, real.network, real.images, real.labels, vector, real.block_size
    )


def weigh_gap(synthetic: SyntheticSide, distance: Distance, weighed: Constants) -> Tensor:
    """Return v' M v, differentiable through v, from the constant w = M v.

    `quadratic` is the term of Cartwright's GradientMatching (whose code detaches both factors, so
    that it moves no image). H_T is indefinite and Q may be negative; the other matrices make it a
    squared norm (G_T: Schraudolph, "Fast Curvature Matrix-Vector Products", 2002). 2 <v, w> minus
    <v, w> as a constant has the value v' M v and, as M is symmetric, the gradient 2 (dv)' M v.
    """
    (product,) = weighed
    gap = {
        name: synthetic.real_gradient[name] - value for name, value in synthetic.gradient.items()
    }
    aligned = inner_product(gap, product)
    # A sum: under `vmap` the factor 2 would be a tensor of the host's, and CUDA graphs take none.
    return aligned + aligned - aligned.detach()


def slope_of_weighed_gap(
    synthetic: ConstantSide, distance: Distance, weighed: Constants
) -> tuple[Tensor, Tensor]:
    """Return the derivative of `weigh_gap` by the images, -2 d<g_S, w>/dimages, and its value."""
    (product,) = weighed
    slope = slope_along(
        synthetic.theta,
        synthetic.network,
        synthetic.images,
        synthetic.labels,
        product,
        synthetic.block_size,
    )
    return -2 * slope, inner_product(synthetic.gap, product)


def of_weighed_gap(weighed: Callable[[ConstantSide], Constants]) -> CurvatureForm:
    """Return the form in which M v is what is given."""
    return CurvatureForm(weighed, weigh_gap, needs_gap=True, slope=slope_of_weighed_gap)
