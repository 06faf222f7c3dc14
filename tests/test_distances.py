"""Distances against closed forms and the plain loops of the reference."""

import pytest
import torch
from torch import Tensor

import reference
from condensation.distances import DISTANCES, cosine, layerwise_cosine, squared_euclidean
from condensation.networks import Theta
from condensation.randomness import generator

SHAPES = {"conv.weight": (3, 2, 3, 3), "conv.bias": (3,), "linear.weight": (4, 5)}


def gradient(stream: str) -> Theta:
    draw = generator(0, stream)
    return {k: torch.randn(s, generator=draw, dtype=torch.float64) for k, s in SHAPES.items()}


@pytest.mark.parametrize("name", DISTANCES)
def test_equals_the_reference(name: str) -> None:
    a, b = gradient("a"), gradient("b")
    expected = reference.distance(name, list(a.values()), list(b.values()))
    torch.testing.assert_close(DISTANCES[name](a, b), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", DISTANCES)
def test_is_zero_at_equality_and_positive_elsewhere(name: str) -> None:
    a, b = gradient("a"), gradient("b")
    assert abs(DISTANCES[name](a, a).item()) < 1e-13
    assert DISTANCES[name](a, b) > 0.1


@pytest.mark.parametrize("name", DISTANCES)
def test_slope_equals_finite_differences(name: str) -> None:
    a, b = gradient("a"), gradient("b")

    def distance(*values: Tensor) -> Tensor:
        return DISTANCES[name](dict(zip(a, values, strict=True)), b)

    assert torch.autograd.gradcheck(distance, [value.requires_grad_() for value in a.values()])


@pytest.mark.parametrize("name", DISTANCES)
def test_a_zero_gradient_gives_numbers(name: str) -> None:
    zero = {key: torch.zeros_like(value).requires_grad_() for key, value in gradient("a").items()}
    value = DISTANCES[name](zero, gradient("b"))
    slopes = torch.autograd.grad(value, list(zero.values()), materialize_grads=True)
    assert value.isfinite() and all(slope.isfinite().all() for slope in slopes)


def test_closed_forms() -> None:
    a = {"weight": torch.eye(2)}
    b = {"weight": torch.tensor([[2.0, 0.0], [3.0, 0.0]])}  # rows at 0 and at 90 degrees
    assert layerwise_cosine(a, b).item() == pytest.approx(1)
    assert cosine(a, b).item() == pytest.approx(1 - 2 / (2**0.5 * 13**0.5))
    assert squared_euclidean(a, b).item() == pytest.approx(1 + 9 + 1)


def test_layerwise_cosine_skips_parameters_of_one_dimension() -> None:
    a, b = gradient("a"), gradient("b")
    shifted = {**b, "conv.bias": b["conv.bias"] + 1}
    assert torch.equal(layerwise_cosine(a, b), layerwise_cosine(a, shifted))
