"""Architectures against the published ones, and parameters against PyTorch's own."""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condensation.blocks import Block
from condensation.deep_networks import DOWNSAMPLINGS
from condensation.derivatives import classification_loss, loss_gradient
from condensation.distances import DISTANCES
from condensation.draws import Draws
from condensation.image_steps import ImageSteps
from condensation.layers import ACTIVATIONS, POOLINGS, AveragePool
from condensation.matching import Engine, make_matching_step
from condensation.networks import (
    NETWORKS,
    Network,
    Theta,
    batch_statistics,
    build_network,
    freeze_statistics,
    init_theta,
)
from condensation.normalisation import NORMS
from condensation.randomness import generator
from conftest import central_difference, random_images, tiny_network
from workspace import small_dataset

MNIST, COLOUR = (1, 28, 28), (3, 32, 32)


def vgg11_size(channels: int) -> int:
    """Convolutions of 3 x 3 with a bias, a weight and a bias of the norm each, 512 features."""
    filters = [channels, 64, 128, 256, 256, 512, 512, 512, 512]
    pairs = zip(filters[:-1], filters[1:], strict=True)
    return sum((9 * before + 1 + 2) * after for before, after in pairs) + 513 * 10


def resnet18_size(channels: int, places: int) -> int:
    """No biases; two norms a block; shortcuts of 1 x 1 with a norm where the width changes."""
    total = (9 * channels + 2) * 64 + (512 * places + 1) * 10
    for before, after in ((64, 64), (64, 128), (128, 256), (256, 512)):
        total += (9 * before + 9 * after + 4) * after + (18 * after + 4) * after
        total += (before + 2) * after if before != after else 0
    return total


PUBLISHED_SIZES = {
    # (in + 1) * out of each layer
    ("mlp", MNIST): 785 * 128 + 129 * 128 + 129 * 10,
    ("mlp", COLOUR): 3073 * 128 + 129 * 128 + 129 * 10,
    # convolutions of 5 x 5, then linear layers; 62,006 is the number usually told for CIFAR
    ("lenet", MNIST): 26 * 6 + (150 + 1) * 16 + 401 * 120 + 121 * 84 + 85 * 10,
    ("lenet", COLOUR): 62_006,
    # three convolutions of 3 x 3 with a norm each (2 * 128), then 4 x 4 x 128 features; 320,010 is
    # the number usually told for CIFAR-10
    ("convnet", MNIST): 10 * 128 + 2 * (9 * 128 + 1) * 128 + 3 * 256 + 2049 * 10,
    ("convnet", COLOUR): 320_010,
    # convolutions of 5, 5, 3, 3 and 3, then 4 x 4 x 192 features
    **{
        ("alexnet", shape): (25 * shape[0] + 1) * 128
        + (25 * 128 + 1) * 192
        + (9 * 192 + 1) * 256
        + (9 * 256 + 1) * 192
        + (9 * 192 + 1) * 192
        + (16 * 192 + 1) * 10
        for shape in (MNIST, COLOUR)
    },
    # 9,231,114 and 11,173,962 are told by github.com/kuangliu/pytorch-cifar, whose batch norms have
    # as many parameters
    ("vgg11", MNIST): vgg11_size(1),
    ("vgg11", COLOUR): 9_231_114,
    ("resnet18", MNIST): resnet18_size(1, 1),
    ("resnet18", COLOUR): 11_173_962,
}


@pytest.mark.parametrize("name, shape", PUBLISHED_SIZES, ids=str)
def test_number_of_parameters_is_the_published_one(name: str, shape: tuple[int, int, int]) -> None:
    assert {network for network, _ in PUBLISHED_SIZES} == set(NETWORKS)
    network = build_network(name, shape, 10)
    size = sum(p.numel() for p in network.module.parameters())
    assert size == PUBLISHED_SIZES[name, shape]


# Weights of the first layer for each further channel, and features that are classified.
FIRST_AND_LAST = {
    "mlp": (784 * 128, 128),
    "lenet": (25 * 6, 84),
    "convnet": (9 * 128, 2048),
    "alexnet": (25 * 128, 16 * 192),
    "vgg11": (9 * 64, 512),
    "resnet18": (9 * 64, 512),
}


@pytest.mark.parametrize("num_classes", [2, 100])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize("name", NETWORKS)
def test_other_channels_sizes_and_classes_change_the_ends_only(
    name: str, side: int, channels: int, num_classes: int
) -> None:
    """What is between is of 32 x 32, to which 28 x 28 is padded; only the MLP sees pixels."""
    first, features = FIRST_AND_LAST[name]
    expected = PUBLISHED_SIZES[name, MNIST]
    expected += (channels - 1) * first + (num_classes - 10) * (features + 1)
    expected += channels * (side**2 - 784) * 128 if name == "mlp" else 0
    network = build_network(name, (channels, side, side), num_classes)
    assert sum(p.numel() for p in network.module.parameters()) == expected


def test_sizes_written_as_sums_agree_with_the_numbers_told() -> None:
    assert vgg11_size(3) == 9_231_114 and resnet18_size(3, 1) == 11_173_962


@pytest.mark.parametrize("shape, places", [(MNIST, 9), (COLOUR, 16)], ids=str)
def test_resnet_that_halves_by_averages_classifies_all_places(
    shape: tuple[int, int, int], places: int
) -> None:
    """ResNet18_AP of Zhao et al.: 3 x 3 places are left of 28 x 28, 4 x 4 of 32 x 32."""
    network = build_network("resnet18", shape, 10, {"downsampling": "avg"})
    size = sum(p.numel() for p in network.module.parameters())
    assert size == resnet18_size(shape[0], places)


FEATURE_SHAPES: dict[str, dict[tuple[int, int, int], dict[str, tuple[int, ...]]]] = {
    "mlp": {MNIST: {"linear0": (128,), "linear1": (128,)}, COLOUR: {"flatten": (3072,)}},
    "lenet": {
        MNIST: {"conv0": (6, 28, 28), "pool0": (6, 14, 14), "conv1": (16, 10, 10)},
        COLOUR: {"conv0": (6, 28, 28), "pool1": (16, 5, 5), "linear0": (120,), "linear1": (84,)},
    },
    "convnet": {
        shape: {"conv0": (128, 32, 32), "pool0": (128, 16, 16), "pool2": (128, 4, 4)}
        for shape in (MNIST, COLOUR)
    },
    "alexnet": {
        shape: {
            "conv0": (128, 32, 32),
            "conv1": (192, 16, 16),
            "conv2": (256, 8, 8),
            "conv3": (192, 8, 8),
            "conv4": (192, 8, 8),
            "pool4": (192, 4, 4),
        }
        for shape in (MNIST, COLOUR)
    },
    "vgg11": {
        shape: {
            "conv0": (64, 32, 32),
            "conv1": (128, 16, 16),
            "conv2": (256, 8, 8),
            "conv3": (256, 8, 8),
            "conv5": (512, 4, 4),
            "conv7": (512, 2, 2),
            "pool7": (512, 1, 1),
        }
        for shape in (MNIST, COLOUR)
    },
    "resnet18": {
        MNIST: {
            "conv": (64, 28, 28),
            "block1": (64, 28, 28),
            "block2": (128, 14, 14),
            "block5": (256, 7, 7),
            "block7": (512, 4, 4),
            "flatten": (512,),
        },
        COLOUR: {"conv": (64, 32, 32), "block2": (128, 16, 16), "block7": (512, 4, 4)},
    },
}
"""Of the published networks: (ch, h, w) of what comes out of a layer."""


def layer_shapes(network: Network, theta: Theta, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shape of what each layer gives for one image."""
    shapes: dict[str, tuple[int, ...]] = {}
    module = copy.deepcopy(network.module)
    for name, layer in module.named_modules():
        layer.register_forward_hook(
            lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    Network(module)(theta, images)
    return shapes


@pytest.mark.parametrize("shape", [MNIST, COLOUR], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_have_the_published_shapes(name: str, shape: tuple[int, int, int]) -> None:
    network = build_network(name, shape, 10)
    shapes = layer_shapes(network, init_theta(network, generator(0), "cpu"), torch.zeros(1, *shape))
    expected = FEATURE_SHAPES[name][shape]
    assert {layer: shapes[layer] for layer in expected} == expected


@pytest.mark.parametrize("name", ["convnet", "vgg11", "resnet18"])
def test_norms_are_instance_norms_unless_set(name: str) -> None:
    """Group norm with one group a channel, as published."""
    network = build_network(name, COLOUR, 10)
    norms = [layer for key, layer in network.module.named_modules() if "norm" in key]
    assert all(isinstance(n, nn.GroupNorm) and n.num_groups == n.num_channels for n in norms)
    assert len(norms) == {"convnet": 3, "vgg11": 8, "resnet18": 20}[name]


def with_norms(theta: Theta) -> Theta:
    """The parameters with factors and summands of norms that are drawn, too: not 1 and 0."""
    draw = generator(3, "norms")
    norms = {
        key: torch.randn(value.shape, generator=draw, dtype=value.dtype)
        for key, value in theta.items()
        if "norm" in key
    }
    return theta | norms


def plain_norm(theta: Theta, name: str, values: Tensor) -> Tensor:
    """Instance norm; AlexNet has none."""
    if f"{name}.weight" not in theta:
        return values
    weight, bias = theta[f"{name}.weight"], theta[f"{name}.bias"]
    return F.group_norm(values, values.shape[1], weight, bias)


def classified(theta: Theta, features: Tensor) -> Tensor:
    return F.linear(features, theta["classifier.weight"], theta["classifier.bias"])


def plain_layers(theta: Theta, images: Tensor, kernels: list[int], pooled: set[int]) -> Tensor:
    """Logits of AlexNet and VGG11: convolutions, some of them with 2 x 2 maximum pooling."""
    values = F.pad(images, (2,) * 4) if images.shape[-1] == 28 else images
    for index, kernel in enumerate(kernels):
        weight, bias = theta[f"conv{index}.weight"], theta[f"conv{index}.bias"]
        values = F.conv2d(values, weight, bias, padding=kernel // 2)
        values = F.relu(plain_norm(theta, f"norm{index}", values))
        values = F.max_pool2d(values, 2) if index in pooled else values
    return classified(theta, values.flatten(1))


def plain_resnet18(theta: Theta, images: Tensor, averaged: bool) -> Tensor:
    """Logits of ResNet18, which halves by stride or by average pooling."""

    def convolve(name: str, values: Tensor, padding: int, halves: bool = False) -> Tensor:
        weight = theta[f"{name}.weight"]
        if averaged or not halves:
            return F.conv2d(values, weight, padding=padding)
        return F.conv2d(values, weight, padding=padding, stride=2)

    def pool(values: Tensor, halves: bool) -> Tensor:
        return F.avg_pool2d(values, 2) if averaged and halves else values

    values = F.relu(plain_norm(theta, "norm", convolve("conv", images, 1)))
    for index in range(8):
        block, halves = f"block{index}", index in (2, 4, 6)
        inner = convolve(f"{block}.conv0", values, 1, halves)
        inner = pool(F.relu(plain_norm(theta, f"{block}.norm0", inner)), halves)
        inner = plain_norm(theta, f"{block}.norm1", convolve(f"{block}.conv1", inner, 1))
        if halves:
            values = pool(convolve(f"{block}.shortcut.conv", values, 0, halves), halves)
            values = plain_norm(theta, f"{block}.shortcut.norm", values)
        values = F.relu(inner + values)
    return classified(theta, values.flatten(1) if averaged else values.mean((2, 3)))


PLAIN: list[tuple[str, dict[str, str], Callable[[Theta, Tensor], Tensor]]] = [
    ("alexnet", {}, partial(plain_layers, kernels=[5, 5, 3, 3, 3], pooled={0, 1, 4})),
    ("vgg11", {}, partial(plain_layers, kernels=[3] * 8, pooled={0, 1, 3, 5, 7})),
    ("resnet18", {"downsampling": "stride"}, partial(plain_resnet18, averaged=False)),
    ("resnet18", {"downsampling": "avg"}, partial(plain_resnet18, averaged=True)),
]
"""Deep networks, and their logits by the functions of PyTorch alone."""


@pytest.mark.parametrize("shape", [MNIST, COLOUR], ids=str)
@pytest.mark.parametrize("name, options, plain", PLAIN)
def test_deep_networks_are_the_published_functions(
    name: str,
    options: dict[str, str],
    plain: Callable[[Theta, Tensor], Tensor],
    shape: tuple[int, int, int],
) -> None:
    network, theta = tiny_network(name, shape, activation="relu", width=4, **options)
    theta = with_norms(theta)
    images = random_images(3, stream="images", image_shape=shape)
    expected = plain(theta, images)
    assert not torch.allclose(expected[0], expected[1], rtol=0.01)
    torch.testing.assert_close(network(theta, images), expected, rtol=1e-10, atol=1e-12)


VARIANTS: list[tuple[str, dict[str, str]]] = [
    *((name, {}) for name in NETWORKS),
    *(("convnet", {"pooling": pooling}) for pooling in POOLINGS),
    *(("resnet18", {"downsampling": kind}) for kind in DOWNSAMPLINGS),
    *((name, {"norm": norm}) for name in ("convnet", "alexnet", "vgg11") for norm in NORMS),
    *(("resnet18", {"norm": norm}) for norm in ("batch", "none")),
]
"""Networks and their settings of every kind but the activation."""


def variant(
    name: str, options: dict[str, str], shape: tuple[int, int, int] = MNIST
) -> tuple[Network, Theta]:
    """Build a small, smooth network: four channels divide into the groups of `group`."""
    small = {} if name == "lenet" else {"width": 4}
    return tiny_network(name, shape, activation="softplus", **small, **options)


@pytest.mark.parametrize("name, options", VARIANTS, ids=str)
def test_stacked_networks_equal_each_by_itself(name: str, options: dict[str, str]) -> None:
    """`torch.func.vmap` over theta, of the logits and of the gradient."""
    network, theta = variant(name, options)
    thetas = [theta, {key: 2 * v for key, v in theta.items()}, {k: -v for k, v in theta.items()}]
    stacked = {key: torch.stack([theta[key] for theta in thetas]) for key in theta}
    images, labels = random_images(4, stream="images"), torch.tensor([0, 1, 2, 0])

    def logits_and_gradient(theta: Theta) -> tuple[Tensor, Theta]:
        return network(theta, images), loss_gradient(theta, network, images, labels)

    together = torch.func.vmap(logits_and_gradient)(stacked)
    for index, theta in enumerate(thetas):
        logits, gradient = logits_and_gradient(theta)
        torch.testing.assert_close(together[0][index], logits, rtol=1e-9, atol=1e-12)
        for key, value in gradient.items():
            torch.testing.assert_close(together[1][key][index], value, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name, options", VARIANTS, ids=str)
def test_gradients_are_differentiable_again(name: str, options: dict[str, str]) -> None:
    """Twice backward, by images and by parameters, against central differences in float64."""
    # 32 x 32: where 28 x 28 is padded, a maximum is of equal values, and has a kink there.
    shape = (1, 32, 32)
    network, theta = variant(name, options, shape)
    images = random_images(3, stream="images", image_shape=shape)
    labels = torch.tensor([0, 1, 2])
    network = freeze_statistics(network, theta, images)
    draw = generator(2, "directions")
    vector = {key: 0.01 * torch.randn(v.shape, generator=draw).double() for key, v in theta.items()}

    def slope(at: Theta, seen: Tensor) -> Tensor:
        gradient = loss_gradient(at, network, seen, labels)
        return torch.stack([(gradient[key] * vector[key]).sum() for key in at]).sum()

    along = random_images(3, stream="along", image_shape=shape)
    by_images = torch.func.grad(slope, argnums=1)(theta, images)
    expected = central_difference(lambda seen: slope(theta, seen), images, along)
    assert expected.abs() > 1e-8
    torch.testing.assert_close((by_images * along).sum(), expected, rtol=1e-4, atol=1e-7)

    by_theta = torch.func.grad(slope)(theta, images)
    product = torch.stack([(by_theta[key] * vector[key]).sum() for key in theta]).sum()
    expected = central_difference(
        lambda step: slope({key: v + step * vector[key] for key, v in theta.items()}, images),
        torch.zeros((), dtype=torch.float64),
        torch.ones((), dtype=torch.float64),
    )
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_computed_in_place(name: str) -> None:
    module = NETWORKS[name](MNIST, 10)
    assert not any(getattr(layer, "inplace", False) for layer in module.modules())


@pytest.mark.parametrize("shape", [MNIST, (3, 28, 28), (1, 32, 32), COLOUR, (3, 64, 64)], ids=str)
@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_channels_sizes_and_classes(
    name: str, num_classes: int, shape: tuple[int, int, int]
) -> None:
    options = {} if name == "lenet" else {"width": 4}
    network = build_network(name, shape, num_classes, options)
    theta = init_theta(network, generator(0), "cpu")
    logits = network(theta, torch.randn(2, *shape, generator=generator(1)))
    assert logits.shape == (2, num_classes) and logits.isfinite().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_activations(name: str, activation: str) -> None:
    """Each is where it should be, and gives the logits of no other."""
    network, theta = tiny_network(name, activation=activation)
    expected = {"leaky_relu": "LeakyReLU", "silu": "SiLU", "relu": "ReLU"}
    kinds = {
        type(layer).__name__ for key, layer in network.module.named_modules() if "activation" in key
    }
    assert kinds == {expected.get(activation, activation.capitalize())}
    images = random_images(2, stream="images")
    logits = network(theta, images)
    assert logits.isfinite().all()
    for other in ACTIVATIONS:
        same = torch.equal(tiny_network(name, activation=other)[0](theta, images), logits)
        assert same == (other == activation)


# Batch norm with statistics of real images.


def condensing() -> tuple[Draws, Network, Theta]:
    """The draws of two sets, from three classes of 20 images, and a network with batch norm."""
    dataset = small_dataset(20, "train")
    draws = Draws(dataset, range(7, 9), None, torch.device("cpu"))
    network = build_network("convnet", dataset.image_shape, 3, {"width": 4, "norm": "batch"})
    return draws, network, init_theta(network, generator(0, "theta"), "cpu")


@pytest.mark.parametrize("k", [0, 1])
def test_condensing_freezes_them_at_16_real_images_of_each_class(k: int) -> None:
    """Of 20; the two sets, and the image steps, each have images of their own."""
    draws, network, theta = condensing()
    real = torch.cat([*draws.real(k, range(3), 16, "batch norm", 5, 1)])
    assert len(real) == 3 * 16
    frozen = draws.frozen(network, theta, k, 5, 1)
    assert frozen.batch_norms and all(layer.frozen for layer in frozen.batch_norms.values())
    torch.testing.assert_close(
        frozen.statistics, batch_statistics(network, theta, real), rtol=0, atol=0
    )
    without, _ = tiny_network("lenet")
    assert draws.frozen(without, theta, k, 5, 1) is without


def test_image_steps_match_gradients_of_the_frozen_networks() -> None:
    draws, network, theta = condensing()
    distance, sets, classes = DISTANCES["squared_euclidean"], range(2), range(3)
    plan = draws, [Block(sets, classes)], distance, None, 4, (2, 3), Engine()
    images = torch.randn(2, 3, 1, 16, 16, generator=generator(1))
    found = ImageSteps(network, [1] * 3, *plan).match(images, [theta] * 2, 2, 1)
    networks = [draws.frozen(network, theta, k, 2, 1) for k in sets]
    real = [draws.real(k, classes, 4, "real", 2, 1) for k in sets]
    step = make_matching_step(networks, distance, None, [1] * 3)
    expected = step(images, real, [theta] * 2, [[], []], [[None] * 3] * 2)
    assert torch.equal(found.gradient, expected.gradient)


def real_and_synthetic() -> tuple[Tensor, Tensor]:
    """A batch to take the statistics of, and one with other statistics."""
    return random_images(12, stream="real") * 2 + 0.5, random_images(3, stream="synthetic")


def batch_norm_inputs(network: Network, theta: Theta, images: Tensor) -> dict[str, list[Tensor]]:
    """Return what each batch norm gets and gives."""
    seen: dict[str, list[Tensor]] = {}
    watched = Network(copy.deepcopy(network.module), network.statistics)
    for name, layer in watched.batch_norms.items():
        layer.register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: [inputs[0], output]})
        )
    watched(theta, images)
    return seen


NETWORKS_WITH_NORMS = ["convnet", "alexnet", "vgg11", "resnet18"]


@pytest.mark.parametrize("name", NETWORKS_WITH_NORMS)
def test_frozen_statistics_are_those_of_the_real_batch(name: str) -> None:
    network, theta = tiny_network(name, norm="batch")
    real, _ = real_and_synthetic()
    frozen = freeze_statistics(network, theta, real)
    seen = batch_norm_inputs(network, theta, real)
    assert seen.keys() == network.batch_norms.keys() and seen
    for key, (inputs, _) in seen.items():
        flat = inputs.transpose(0, 1).flatten(1)
        torch.testing.assert_close(frozen.statistics[f"{key}.mean"], flat.mean(1))
        torch.testing.assert_close(frozen.statistics[f"{key}.variance"], flat.var(1, correction=0))
    torch.testing.assert_close(frozen(theta, real), network(theta, real))


@pytest.mark.parametrize("name", NETWORKS_WITH_NORMS)
def test_frozen_norms_do_not_depend_on_the_synthetic_batch(name: str) -> None:
    """An image's logits are the same alone and in any company; before freezing they are not."""
    network, theta = tiny_network(name, norm="batch")
    real, synthetic = real_and_synthetic()
    frozen = freeze_statistics(network, theta, real)
    alone = torch.cat([frozen(theta, image[None]) for image in synthetic])
    torch.testing.assert_close(frozen(theta, synthetic), alone)
    assert not torch.allclose(network(theta, synthetic)[:1], network(theta, synthetic[:2])[:1])
    together = batch_norm_inputs(frozen, theta, synthetic)
    for key, (_, output) in batch_norm_inputs(frozen, theta, synthetic[:1]).items():
        torch.testing.assert_close(output, together[key][1][:1])


def test_batch_norm_is_that_of_pytorch() -> None:
    """Training mode before freezing, evaluation mode after it."""
    network, theta = tiny_network("convnet", norm="batch")
    real, synthetic = real_and_synthetic()
    frozen = freeze_statistics(network, theta, real)
    layer = nn.BatchNorm2d(4).double()
    inputs, output = batch_norm_inputs(network, theta, real)["norm0"]
    torch.testing.assert_close(output, F.batch_norm(inputs, None, None, training=True))
    layer.running_mean = frozen.statistics["norm0.mean"]
    layer.running_var = frozen.statistics["norm0.variance"]
    inputs, output = batch_norm_inputs(frozen, theta, synthetic)["norm0"]
    torch.testing.assert_close(output, layer.eval()(inputs))


def test_statistics_are_constants_of_the_gradient() -> None:
    """And no part of theta: distances, probes and weight decay do not see them."""
    network, theta = tiny_network("convnet", norm="batch")
    leaves = {key: value.clone().requires_grad_() for key, value in theta.items()}
    real, synthetic = real_and_synthetic()
    frozen = freeze_statistics(network, leaves, real)
    assert not any(value.requires_grad for value in frozen.statistics.values())
    assert not frozen.statistics.keys() & theta.keys()
    loss = classification_loss(leaves, frozen, synthetic, torch.tensor([0, 1, 2]))
    assert torch.autograd.grad(loss, leaves["conv0.weight"])[0].any()
    assert freeze_statistics(*tiny_network("lenet"), real).statistics == {}


def test_statistics_of_stacked_networks() -> None:
    network, _ = tiny_network("convnet", norm="batch")
    thetas = [init_theta(network, generator(0, index), "cpu") for index in range(2)]
    stacked = {key: torch.stack([theta[key] for theta in thetas]) for key in thetas[0]}
    real = real_and_synthetic()[0].float()
    together = torch.func.vmap(lambda theta: batch_statistics(network, theta, real))(stacked)
    for index, theta in enumerate(thetas):
        for key, value in batch_statistics(network, theta, real).items():
            torch.testing.assert_close(together[key][index], value)


def test_a_constant_image_leaves_the_first_instance_norm_at_its_bias() -> None:
    """Zeros, with what the convolution puts around them, have no variance: nothing to normalise."""
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
        (
            "lenet",
            {},
            (1, 8, 8),
            r"network 'lenet': got images of 8 x 8, takes 16 x 16 and larg",
        ),
        ("alexnet", {}, (3, 7, 9), r"network 'alexnet': got images of 7 x 9, takes 8 x 8 and la"),
        (
            "vgg11",
            {},
            (3, 16, 16),
            r"'vgg11': got images of 16 x 16, takes 32 .* and 28 x 28; prepare.image_size brings",
        ),
        ("vgg11", {}, (3, 32, 28), r"network 'vgg11': got images of 32 x 28, takes"),
        ("resnet18", {}, (1, 8, 8), r"network 'resnet18': got images of 8 x 8, takes 16 x 16"),
        ("convnet", {"norm": "group", "width": 6}, (1, 28, 28), "norm 'group': got 6 channels, ta"),
    ],
)
def test_what_a_network_cannot_take_is_refused(
    name: str, options: dict[str, int | str], shape: tuple[int, int, int], message: str
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
