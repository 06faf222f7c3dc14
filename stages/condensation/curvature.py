"""The forms of order 2: terms Q that add curvature to the matching loss of one class.

Notation: g_S, H_S = gradient and Hessian of the loss on the class's synthetic images, g_T, H_T on
real ones, D a distance between gradients, all at the same parameters theta. What comes from the
real images alone is a constant; the image gradient flows through what is computed from the
synthetic images.

A form has two parts, so that the second can be compiled and differentiated on its own:
`constants`, computed once for a step, and `term`, Q as a function of the synthetic images; and, in
place of `term`, `slope`, the derivative of Q by synthetic images that compiled kernels take. Here
are the forms that match the curvature of the two sides; those that weigh the gap between the
gradients by the curvature of the real side are in `gap_metrics.py`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from condensation.curvature_sides import Constants, ConstantSide, CurvatureForm, SyntheticSide
from condensation.derivatives import (
    constant_gradient_and_product,
    constant_hessian_vector_product,
    constant_loss_gradient,
    hessian_vector_product,
    loss_gradient,
)
from condensation.distance_slopes import distance_slope, product_distance_slope
from condensation.distances import Distance
from condensation.gap_metrics import (
    gap_over_diagonal,
    gauss_newton_of_gap,
    hessian_of_gap,
    inverse_gauss_newton_of_gap,
    of_weighed_gap,
)
from condensation.networks import Theta

LOOKAHEAD_STEP = 0.01
"""Length eta of the SGD step of `lookahead`: the learning rate of the published inner loop."""


def real_products(real: ConstantSide) -> Constants:
    """Return H_T v for each probe v."""
    return [
        constant_hessian_vector_product(
            real.theta, real.network, real.images, real.labels, probe, real.block_size
        )
        for probe in real.probes
    ]


def gradient_and_real_products(real: ConstantSide) -> tuple[Theta, Constants]:
    """Return g_T, and H_T v for each probe v: the first of them in the same pass."""
    first, *others = real.probes
    gradient, product = constant_gradient_and_product(
        real.theta, real.network, real.images, real.labels, first, real.block_size
    )
    return gradient, [product, *real_products(replace(real, probes=others))]


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


def slope_of_products(
    synthetic: ConstantSide, distance: Distance, real_products: Constants
) -> tuple[Tensor, Tensor]:
    """Return the derivative of `match_products` by the images, and its value."""
    slopes, distances = zip(
        *(
            product_distance_slope(
                synthetic.theta,
                synthetic.network,
                synthetic.images,
                synthetic.labels,
                probe,
                product,
                distance,
                synthetic.block_size,
            )
            for probe, product in zip(synthetic.probes, real_products, strict=True)
        ),
        strict=True,
    )
    return torch.stack(slopes).mean(0), torch.stack(distances).mean()


def step_along_real_gradient(real: ConstantSide) -> Constants:
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


def slope_ahead(
    synthetic: ConstantSide, distance: Distance, ahead: Constants
) -> tuple[Tensor, Tensor]:
    """Return the derivative of `match_gradients_ahead` by the images, and its value."""
    theta, real_gradient = ahead
    arguments = theta, synthetic.network, synthetic.images, synthetic.labels
    gradient = constant_loss_gradient(*arguments, synthetic.block_size)
    return distance_slope(*arguments, gradient, real_gradient, distance, synthetic.block_size)


CURVATURE_FORMS: dict[str, CurvatureForm] = {
    "hvp": CurvatureForm(
        real_products,
        match_products,
        with_gradient=gradient_and_real_products,
        slope=slope_of_products,
    ),
    "lookahead": CurvatureForm(step_along_real_gradient, match_gradients_ahead, slope=slope_ahead),
    "quadratic": of_weighed_gap(hessian_of_gap),
    "ggn": of_weighed_gap(gauss_newton_of_gap),
    "ggn_diagonal": of_weighed_gap(gap_over_diagonal),
    "ggn_inverse": of_weighed_gap(inverse_gauss_newton_of_gap),
}
