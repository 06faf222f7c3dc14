"""Winograd's convolution and the fused blocks, against PyTorch's own operators."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from condensation import fused, winograd
from condensation.derivatives import classification_loss, constant_loss_gradient
from condensation.networks import NETWORKS, build_network, init_theta
from condensation.randomness import generator

SHAPES = [(2, 8, 8, 3, 5), (3, 4, 12, 40, 33), (1, 16, 4, 1, 1)]


def gradients(convolved: Tensor, inputs: tuple[Tensor, ...], slope: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(convolved, inputs, slope)


@pytest.mark.parametrize("shape", SHAPES)
def test_winograd_convolution_and_its_gradient_are_those_of_the_direct_sum(
    shape: tuple[int, int, int, int, int],
) -> None:
    number, height, width, channels, filters = shape
    stream = generator(0, "winograd")
    draw = {"generator": stream, "dtype": torch.float64}
    images = torch.randn(number, height, width, channels, **draw).requires_grad_()  # type: ignore[call-overload]
    weight = torch.randn(filters, channels, 3, 3, **draw).requires_grad_()  # type: ignore[call-overload]
    bias = torch.randn(filters, **draw).requires_grad_()  # type: ignore[call-overload]
    slope = torch.randn(number, height, width, filters, **draw)  # type: ignore[call-overload]
    inputs = (images, weight, bias)
    ours = winograd.convolve(*inputs)
    direct = F.conv2d(images.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, direct, rtol=1e-12, atol=1e-12)
    for got, expected in zip(
        gradients(ours, inputs, slope), gradients(direct, inputs, slope), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-11)


def test_winograd_convolution_in_float32_is_right_to_a_few_millionths() -> None:
    stream = generator(0, "winograd")
    images = torch.randn(4, 16, 16, 64, generator=stream)
    weight, bias = torch.randn(64, 64, 3, 3, generator=stream), torch.zeros(64)
    exact = F.conv2d(images.double().permute(0, 3, 1, 2), weight.double(), padding=1)
    error = winograd.convolve(images, weight, bias) - exact.permute(0, 2, 3, 1)
    assert error.norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("num_images", [1, 5])
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32)])
def test_first_order_is_the_network_itself(
    name: str, num_images: int, image_shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the small network of the test takes every path that the real one takes.
    monkeypatch.setattr(fused, "FEWEST_CHANNELS", 8)
    monkeypatch.setattr(fused, "FEWEST_TILES", 8)
    options = {"width": 8} if name == "convnet" else {}
    network = build_network(name, image_shape, 10, options)
    theta = init_theta(network, generator(0, "theta"), "cpu")
    theta = {key: value.double().requires_grad_() for key, value in theta.items()}
    images = torch.randn(num_images, *image_shape, generator=generator(1), dtype=torch.float64)
    images.requires_grad_()
    labels = torch.arange(num_images)
    torch.testing.assert_close(
        network.first_order(theta, images), network(theta, images), rtol=1e-10, atol=1e-10
    )
    inputs = [*theta.values(), images]
    ours, expected = (
        torch.autograd.grad(classification_loss(theta, function, images, labels), inputs)
        for function in (network.first_order, network)
    )
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-12)


def test_fused_blocks_are_used_where_they_are_meant() -> None:
    """ConvNet of the published size, both kinds of convolution: no other operator convolves."""
    network = build_network("convnet", (1, 28, 28), 10)
    theta = init_theta(network, generator(0, "theta"), "cpu")
    real = torch.randn(16, 1, 28, 28, generator=generator(1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        constant_loss_gradient(theta, network, real, torch.zeros(16, dtype=torch.int64), 16)
    operators = {event.key for event in profile.key_averages()}
    assert "aten::conv2d" not in operators and "aten::group_norm" not in operators
    assert "_Convolution" in operators


@pytest.mark.parametrize("num_images", [1, 3, 7])
def test_chunks_do_not_change_the_result(num_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network("convnet", (1, 8, 8), 4, {"width": 8, "depth": 2})
    theta = init_theta(network, generator(0, "theta"), "cpu")
    images = torch.randn(num_images, 1, 8, 8, generator=generator(1))
    labels = torch.zeros(num_images, dtype=torch.int64)
    whole = constant_loss_gradient(theta, network, images, labels, num_images)
    monkeypatch.setattr(fused, "CACHED", 2 * 8 * 64)
    parts = constant_loss_gradient(theta, network, images, labels, num_images)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)
