"""Architectures against the published ones, and parameters against PyTorch's own."""

import math

import pytest
import torch

from condensation.networks import (
    ACTIVATIONS,
    NETWORKS,
    build_network,
    init_theta,
)
from condensation.pooling import AveragePool
from condensation.randomness import generator

PUBLISHED_SIZES = {
    # (in + 1) * out of each layer
    "mlp": 785 * 128 + 129 * 128 + 129 * 10,
    # convolutions of 5 x 5, then linear layers
    "lenet": 26 * 6 + (150 + 1) * 16 + 401 * 120 + 121 * 84 + 85 * 10,
    # three convolutions of 3 x 3 with a norm each (2 * 128), then 4 x 4 x 128 features
    "convnet": 10 * 128 + 2 * (9 * 128 + 1) * 128 + 3 * 256 + 2049 * 10,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_number_of_parameters_is_the_published_one(name: str) -> None:
    network = build_network(name, (1, 28, 28), 10)
    assert sum(p.numel() for p in network.module.parameters()) == PUBLISHED_SIZES[name]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_have_one_column_a_class(
    name: str, activation: str, shape: tuple[int, int, int]
) -> None:
    network = build_network(name, shape, 7, {"activation": activation})
    theta = init_theta(network, generator(0), "cpu")
    logits = network(theta, torch.randn(2, *shape, generator=generator(1)))
    assert logits.shape == (2, 7) and logits.isfinite().all()


def test_convnet_sees_mnist_as_32_by_32() -> None:
    network = build_network("convnet", (1, 28, 28), 10)
    theta = init_theta(network, generator(0), "cpu")
    shapes = {}
    layers = dict(network.module.named_children())
    for name, layer in layers.items():
        layer.register_forward_hook(
            lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    network(theta, torch.zeros(1, 1, 28, 28))
    assert shapes["conv0"] == (128, 32, 32) and shapes["pool2"] == (128, 4, 4)
    assert [layers[f"norm{block}"].num_groups for block in range(3)] == [128] * 3


def test_a_constant_image_leaves_the_first_instance_norm_at_its_bias() -> None:
    """Why `black` cannot be condensed: away from the border nothing depends on the pixels."""
    network = build_network("convnet", (1, 32, 32), 2, {"width": 4, "depth": 1})
    theta = init_theta(network, generator(0), "cpu")
    theta["conv0.bias"].zero_()
    images = torch.zeros(1, 1, 32, 32, requires_grad=True)
    network(theta, images).sum().backward()
    assert images.grad is not None and not images.grad.any()


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_drawn_as_pytorch_draws_them(name: str) -> None:
    """Same support and, within sampling error, the same standard deviation, tensor by tensor."""
    network = build_network(name, (1, 28, 28), 10)
    ours = init_theta(network, generator(0), "cpu")
    torch.manual_seed(0)
    module = NETWORKS[name]((1, 28, 28), 10)
    for key, theirs in module.named_parameters():
        if "norm" in key:
            assert torch.equal(ours[key], theirs)
            continue
        weight = module.get_parameter(key.rsplit(".", 1)[0] + ".weight")
        bound = 1 / math.sqrt(weight[0].numel())
        assert ours[key].abs().max() <= bound and theirs.abs().max() <= bound
        error = 4 / math.sqrt(theirs.numel())
        assert ours[key].std().item() == pytest.approx(theirs.std().item(), rel=error)


def test_parameters_follow_the_stream() -> None:
    network = build_network("mlp", (1, 28, 28), 10)
    first, again, other = (init_theta(network, generator(0, s), "cpu") for s in "aab")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["linear0.weight"], other["linear0.weight"])


@pytest.mark.parametrize(
    "name, options, shape, message",
    [
        ("convnet", {"depth": 6}, (1, 28, 28), r"networks\.convnet\.depth: got 6, too deep"),
        ("lenet", {}, (1, 8, 8), r"network 'lenet': cannot take images of 8 x 8"),
    ],
)
def test_an_image_too_small_is_refused(
    name: str, options: dict[str, int], shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(name, shape, 10, options)


def test_convnet_takes_the_depth_that_its_message_offers() -> None:
    for size in (28, 32):
        for depth in range(1, 8):
            try:
                network = build_network("convnet", (1, size, size), 2, {"depth": depth, "width": 2})
            except ValueError as error:
                assert f"at most {depth - 1}" in str(error)
                break
            theta = init_theta(network, generator(0), "cpu")
            assert network(theta, torch.zeros(1, 1, size, size)).shape == (1, 2)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (2, 3)], ids=str)
def test_average_pool_is_that_of_pytorch(size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, generator=generator(0), dtype=torch.float64)
    slopes = []
    for pool in (AveragePool(), torch.nn.AvgPool2d(2)):
        inputs = images.clone().requires_grad_()
        pooled = pool(inputs)
        pooled.square().sum().backward()
        slopes.append((pooled.detach(), inputs.grad))
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-12, atol=1e-14)
