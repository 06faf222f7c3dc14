"""Gradients and Hessian-vector products against autograd, finite differences, full Hessians."""

import pytest
import torch
from torch import Tensor

from condensation.derivatives import (
    classification_loss,
    constant_hessian_vector_product,
    constant_loss_gradient,
    hessian_vector_product,
    loss_gradient,
)
from condensation.networks import NETWORKS, Network, Theta
from condensation.randomness import generator
from conftest import NUM_CLASSES, SMALL_SHAPE, central_difference, random_images, tiny_network

LABELS = torch.tensor([0, 1, 2, 1, 0])


def flat(gradient: Theta) -> Tensor:
    return torch.cat([value.flatten() for value in gradient.values()])


def unflat(vector: Tensor, like: Theta) -> Theta:
    parts = vector.split([value.numel() for value in like.values()])
    return {
        name: part.view(value.shape)
        for part, (name, value) in zip(parts, like.items(), strict=True)
    }


def case(name: str) -> tuple[Network, Theta, Tensor, Tensor]:
    """A network, its parameters, five images and a direction in parameter space."""
    network, theta = tiny_network(name)
    size = flat(theta).numel()
    direction = torch.randn(size, generator=generator(2, "direction"), dtype=torch.float64)
    return network, theta, random_images(5, stream="batch"), direction


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_equals_autograd_and_central_differences(name: str) -> None:
    network, theta, images, direction = case(name)
    gradient = loss_gradient(theta, network, images, LABELS)

    leaves = {key: value.clone().requires_grad_() for key, value in theta.items()}
    classification_loss(leaves, network, images, LABELS).backward()
    for key, leaf in leaves.items():
        torch.testing.assert_close(gradient[key], leaf.grad, rtol=1e-12, atol=1e-14)

    slope = central_difference(
        lambda at: classification_loss(unflat(at, theta), network, images, LABELS),
        flat(theta),
        direction,
    )
    torch.testing.assert_close(flat(gradient) @ direction, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_hessian_vector_product_equals_central_differences_of_the_gradient(name: str) -> None:
    network, theta, images, direction = case(name)
    product = hessian_vector_product(theta, network, images, LABELS, unflat(direction, theta))
    difference = central_difference(
        lambda at: flat(loss_gradient(unflat(at, theta), network, images, LABELS)),
        flat(theta),
        direction,
    )
    assert flat(product).norm() > 0
    torch.testing.assert_close(flat(product), difference, rtol=1e-5, atol=1e-6)


def test_hessian_vector_product_equals_the_explicit_hessian() -> None:
    network, theta = tiny_network("mlp", SMALL_SHAPE, width=3)
    images = random_images(5, stream="batch", image_shape=SMALL_SHAPE)
    vector = flat(theta).cos()

    def loss(at: Tensor) -> Tensor:
        return classification_loss(unflat(at, theta), network, images, LABELS)

    hessian = torch.autograd.functional.hessian(loss, flat(theta))
    product = hessian_vector_product(theta, network, images, LABELS, unflat(vector, theta))
    torch.testing.assert_close(flat(product), hessian @ vector, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("block_size", [1, 2, 5, 9])
@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_change_nothing(name: str, block_size: int) -> None:
    network, theta, images, direction = case(name)
    gradient = constant_loss_gradient(theta, network, images, LABELS, block_size)
    vector = unflat(direction, theta)
    product = constant_hessian_vector_product(theta, network, images, LABELS, vector, block_size)
    expected = loss_gradient(theta, network, images, LABELS)
    torch.testing.assert_close(flat(gradient), flat(expected), rtol=1e-10, atol=1e-13)
    expected = hessian_vector_product(theta, network, images, LABELS, vector)
    torch.testing.assert_close(flat(product), flat(expected), rtol=1e-10, atol=1e-12)
    assert not any(value.requires_grad for value in (gradient | product).values())


def test_gradient_of_a_linear_classifier_has_its_closed_form() -> None:
    """For logits W x, dl/dW = (softmax(W x) - one-hot) x', averaged over the batch."""
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, NUM_CLASSES)).double()
    network = Network(linear)
    theta = {name: value.detach() for name, value in linear.named_parameters()}
    images = random_images(5, stream="batch", image_shape=SMALL_SHAPE)
    inputs = images.flatten(1)
    errors = (inputs @ theta["1.weight"].T + theta["1.bias"]).softmax(1)
    errors = errors - torch.nn.functional.one_hot(LABELS, NUM_CLASSES)
    gradient = loss_gradient(theta, network, images, LABELS)
    torch.testing.assert_close(gradient["1.weight"], errors.T @ inputs / 5, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient["1.bias"], errors.mean(0), rtol=1e-12, atol=1e-14)
