"""The matching loss of one class, and the image gradient of all classes.

For class c at parameters theta (Zhao, Mopuri and Bilen, ICLR 2021):

    g_S = dl/dtheta (theta; S_c)     differentiable with respect to the synthetic images S_c
    g_T = dl/dtheta (theta; T_c)     a constant, from a batch T_c of real images of the class
    L_c = D(g_S, g_T) + weight * Q_c     order 1: weight = 0; order 2: Q_c a term of curvature

Everything that comes from the real images, and the probes, are constants: the image gradient flows
through g_S and through what Q_c computes from the synthetic images.

Shapes: C = classes, S = synthetic images a class, R = real images a class, P = probes,
image = (ch, h, w).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condensation.derivatives import (
    constant_hessian_vector_product,
    constant_loss_gradient,
    hessian_vector_product,
    loss_gradient,
)
from condensation.distances import Distance
from condensation.networks import Network, Theta
from condensation.workers import parallel_map

REAL_BLOCK = {"cpu": 32}
"""Real images that go through the network at once, by type of device: 32 stay in a CPU's cache."""


@dataclass(frozen=True)
class RealSide:
    """What the matching loss of one class knows of the real images.

    Attributes:
        theta: Parameters.
        network: The network.
        images: (R, ch, h, w), normalised.
        labels: (R,), all the same class.
        gradient: g_T.
        block_size: Images that go through the network at once.
    """

    theta: Theta
    network: Network
    images: Tensor
    labels: Tensor
    gradient: Theta
    block_size: int


CurvatureTerm = Callable[[RealSide, Distance, Sequence[Theta]], Callable[[Tensor, Tensor], Tensor]]
"""`(real side, distance, probes)` -> `Q(synthetic images (S, ch, h, w), labels (S,))` -> ()."""


@dataclass(frozen=True)
class Curvature:
    """The second-order part of a matching loss: its term and its weight (lambda)."""

    term: CurvatureTerm
    weight: float


def match_hessian_vector_products(
    real: RealSide, distance: Distance, probes: Sequence[Theta]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Form `hvp`: mean over probes v of D(H_S v, H_T v).

    With Rademacher probes and the squared Euclidean distance its expectation is the squared
    Frobenius norm of H_S - H_T (Hutchinson, 1990). H_T v and v are constants; H_S v is
    differentiated with respect to the images (a third derivative of the loss).
    """
    targets = [
        constant_hessian_vector_product(
            real.theta, real.network, real.images, real.labels, probe, real.block_size
        )
        for probe in probes
    ]

    def term(images: Tensor, labels: Tensor) -> Tensor:
        distances = [
            distance(
                hessian_vector_product(real.theta, real.network, images, labels, probe), target
            )
            for probe, target in zip(probes, targets, strict=True)
        ]
        return torch.stack(distances).mean()

    return term


def draw_probes(theta: Theta, num_probes: int, generator: torch.Generator) -> list[Theta]:
    """Draw Rademacher vectors of the shape of theta: entries -1 and +1, equally likely."""
    return [
        {
            name: torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
            for name, value in theta.items()
        }
        for _ in range(num_probes)
    ]


def match_class(
    theta: Theta,
    network: Network,
    synthetic: Tensor,
    real: Tensor,
    class_index: int,
    distance: Distance,
    curvature: Curvature | None,
    probes: Sequence[Theta],
) -> tuple[Tensor, Tensor]:
    """Return the image gradient (S, ch, h, w) and the matching loss () of one class.

    Args:
        theta: Parameters.
        network: The network.
        synthetic: (S, ch, h, w), the class's synthetic images.
        real: (R, ch, h, w), a batch of its real images, normalised.
        class_index: The class.
        distance: D.
        curvature: Q and its weight; None is order 1.
        probes: What Q is probed with.
    """
    real_labels = torch.full((len(real),), class_index, device=real.device)
    block_size = REAL_BLOCK.get(real.device.type, len(real))
    target = constant_loss_gradient(theta, network, real, real_labels, block_size)
    curvature_term = None
    if curvature is not None:
        real_side = RealSide(theta, network, real, real_labels, target, block_size)
        curvature_term = curvature.term(real_side, distance, probes)

    images = synthetic.detach().requires_grad_()
    labels = torch.full((len(images),), class_index, device=images.device)
    loss = distance(loss_gradient(theta, network, images, labels), target)
    if curvature is not None and curvature_term is not None:
        loss = loss + curvature.weight * curvature_term(images, labels)
    (gradient,) = torch.autograd.grad(loss, images)
    return gradient, loss.detach()


MatchingStep = Callable[[Tensor, Tensor, Theta, Sequence[Theta]], tuple[Tensor, Tensor]]


def make_matching_step(
    network: Network, distance: Distance, curvature: Curvature | None
) -> MatchingStep:
    """Return `step(synthetic, real, theta, probes) -> (image gradient, loss)` over all classes.

    The step takes synthetic (C, S, ch, h, w) and real (C, R, ch, h, w) and gives the gradient
    (C, S, ch, h, w) of the sum of the losses, and the loss of each class (C,). Classes are
    independent and are computed side by side.
    """

    def step(
        synthetic: Tensor, real: Tensor, theta: Theta, probes: Sequence[Theta]
    ) -> tuple[Tensor, Tensor]:
        def one_class(index: int) -> tuple[Tensor, Tensor]:
            return match_class(
                theta, network, synthetic[index], real[index], index, distance, curvature, probes
            )

        results = parallel_map(one_class, range(len(synthetic)), synthetic.device)
        gradients, losses = zip(*results, strict=True)
        return torch.stack(gradients), torch.stack(losses)

    return step


CURVATURE_TERMS: dict[str, CurvatureTerm] = {"hvp": match_hessian_vector_products}
