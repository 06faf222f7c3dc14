"""The derivative along a direction, and second derivatives from it: of each layer, by each way."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condensation import fused, kernels
from condensation.derivatives import (
    constant_gauss_newton_vector_product,
    constant_gradient_and_product,
    constant_hessian_vector_product,
    constant_loss_gradient,
    hessian_vector_product,
    inner_product,
    loss_curvature,
    loss_gradient,
)
from condensation.distance_slopes import distance_slope, product_distance_slope
from condensation.distances import DISTANCES
from condensation.layers import ACTIVATIONS, POOLINGS, AveragePool
from condensation.networks import (
    NETWORKS,
    Network,
    Theta,
    build_network,
    freeze_statistics,
    init_theta,
    last_layers,
    part_of,
)
from condensation.normalisation import NORMS
from condensation.randomness import generator
from condensation.tangents import RULES, has_rules
from conftest import NUM_CLASSES, central_difference, tiny_network

LABELS = torch.tensor([0, 1, 2, 1, 0])
CONVNETS = [
    *({"activation": name} for name in ACTIVATIONS),
    *({"norm": name} for name in NORMS),
    *({"pooling": name} for name in POOLINGS),
]
CASES: list[tuple[str, dict[str, str]]] = [
    *((name, {}) for name in NETWORKS if name != "convnet"),
    *(("convnet", options) for options in CONVNETS),
]


@pytest.fixture(scope="module", params=[False, True], ids=["operators", "kernels"])
def compiled(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Without and with the compiled kernels, which take small networks here, too."""
    if request.param and (reason := kernels.build()):
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "FEWEST_CHANNELS", 8)
        patch.setattr(fused, "FEWEST_TILES", 1)
        yield request.param
    kernels.discard()


def needs(compiled: bool, name: str) -> None:
    """Kernels are for ConvNet alone."""
    if compiled and name != "convnet":
        pytest.skip("the same without kernels")


def case(name: str, options: dict[str, str]) -> tuple[Network, Theta, Theta, Tensor]:
    """A network whose norms do something, its parameters, a direction, and five images."""
    sizes = {"lenet": {}, "mlp": {}, "convnet": {"width": 16}}.get(name, {"width": 4})
    network = build_network(name, (1, 28, 28), NUM_CLASSES, {**sizes, **options})
    theta = init_theta(network, generator(0, "theta"), "cpu")
    theta = {
        key: value.double() + 0.1 * torch.randn(value.shape, generator=generator(1, key))
        for key, value in theta.items()
    }
    vector = {
        key: torch.randn(value.shape, generator=generator(2, key), dtype=torch.float64)
        for key, value in theta.items()
    }
    images = torch.randn(5, 1, 28, 28, generator=generator(3), dtype=torch.float64)
    return freeze_statistics(network, theta, images), theta, vector, images


def same(found: Theta, expected: Theta) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-10 * max(scale, 1))


def forward_mode(
    network: Network, theta: Theta, vector: Theta, images: Tensor
) -> tuple[Tensor, Tensor, Callable[[Tensor], tuple[Theta]]]:
    """The logits z, J v and u -> J' u: J v is the slope of <J' u, v>, which is linear in u."""
    logits, pull, *_ = torch.func.vjp(lambda at: network(at, images), theta)

    def along(u: Tensor) -> Tensor:
        (pulled,) = pull(u)
        return inner_product(pulled, vector)

    return logits, torch.func.grad(along)(torch.zeros_like(logits)), pull


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_slope_of_the_logits_is_that_of_forward_mode(
    name: str, options: dict[str, str], compiled: bool
) -> None:
    needs(compiled, name)
    network, theta, vector, images = case(name, options)
    if not network.has_tangents:
        assert name == "resnet18"  # which is no sequence of layers
        return
    logits, slope = network.with_tangent(theta, vector, images)
    expected, pushed, _ = forward_mode(network, theta, vector, images)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slope, pushed, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("block_size", [2, 5])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_products_with_the_hessian_are_those_of_reverse_mode_alone(
    name: str, options: dict[str, str], block_size: int, compiled: bool
) -> None:
    needs(compiled, name)
    network, theta, vector, images = case(name, options)
    found = constant_hessian_vector_product(theta, network, images, LABELS, vector, block_size)
    assert not any(value.requires_grad for value in found.values())
    same(found, hessian_vector_product(theta, network, images, LABELS, vector))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_gradient_comes_in_the_same_pass(
    name: str, options: dict[str, str], compiled: bool
) -> None:
    needs(compiled, name)
    network, theta, vector, images = case(name, options)
    if not network.has_tangents:
        return
    gradient, product = constant_gradient_and_product(theta, network, images, LABELS, vector, 2)
    same(gradient, loss_gradient(theta, network, images, LABELS))
    same(product, hessian_vector_product(theta, network, images, LABELS, vector))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_products_with_the_gauss_newton_matrix_are_those_of_its_definition(
    name: str, options: dict[str, str], compiled: bool
) -> None:
    needs(compiled, name)
    network, theta, vector, images = case(name, options)
    found = constant_gauss_newton_vector_product(theta, network, images, LABELS, vector, 2)
    logits, pushed, pull = forward_mode(network, theta, vector, images)
    probability = logits.softmax(1)
    curvature = torch.diag_embed(probability) - probability[:, :, None] * probability[:, None]
    same(found, pull((curvature @ pushed[:, :, None])[:, :, 0] / len(images))[0])


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_products_of_the_last_layers_are_parts_of_those_of_all(number: int, compiled: bool) -> None:
    """Also where the direction begins in the middle of a block."""
    network, theta, vector, images = case("convnet", {})
    names = last_layers(theta, number)
    fixed = part_of(theta, theta.keys() - names)
    own, moving = part_of(theta, names), part_of(vector, names)
    part = network.holding(fixed)
    whole = {key: value if key in names else 0 * value for key, value in vector.items()}
    for product in (constant_hessian_vector_product, constant_gauss_newton_vector_product):
        found = product(own, part, images, LABELS, moving, 5)
        expected = product(theta, network, images, LABELS, whole, 5)
        same(found, part_of(expected, names))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_logits_and_slopes_can_be_differentiated_by_images_parameters_and_direction(
    name: str, options: dict[str, str], compiled: bool
) -> None:
    """By all of them together, and by the images alone, as matching does."""
    needs(compiled, name)
    network, theta, vector, images = case(name, options)
    if not network.has_tangents:
        return
    of_logits, of_slope = torch.randn(2, len(images), NUM_CLASSES, generator=generator(4)).double()

    def along(logits: Tensor, slope: Tensor) -> Tensor:
        return torch.stack([(of_logits * logits).sum(), (of_slope * slope).sum()]).sum()

    def by_reverse_mode(theta: Theta, vector: Theta, images: Tensor) -> Tensor:
        logits, slope, _ = forward_mode(network, theta, vector, images)
        return along(logits, slope)

    inputs = (theta, vector, images)
    of_theta, of_vector, of_images = torch.func.grad(by_reverse_mode, (0, 1, 2))(*inputs)
    leaves = [
        {key: value.clone().requires_grad_() for key, value in each.items()}
        for each in (theta, vector, {"images": images})
    ]
    values = [value for each in leaves for value in each.values()]
    total = along(*network.with_tangent(leaves[0], leaves[1], leaves[2]["images"]))
    found = iter(torch.autograd.grad(total, values, materialize_grads=True))
    for expected in (of_theta, of_vector, {"images": of_images}):
        same({key: next(found) for key in expected}, expected)
    total = along(*network.with_tangent(theta, vector, leaves[2]["images"]))
    (alone,) = torch.autograd.grad(total, leaves[2]["images"])
    same({"images": alone}, {"images": of_images})


@pytest.mark.parametrize("part", [0, 1], ids=["logits", "slopes"])
def test_either_can_be_differentiated_without_the_other(part: int, compiled: bool) -> None:
    network, theta, vector, images = case("convnet", {})

    def by_reverse_mode(images: Tensor) -> Tensor:
        return forward_mode(network, theta, vector, images)[:2][part].square().sum()

    learned = images.clone().requires_grad_()
    value = network.with_tangent(theta, vector, learned)[part].square().sum()
    (found,) = torch.autograd.grad(value, learned)
    same({"images": found}, {"images": torch.func.grad(by_reverse_mode)(images)})


SMOOTH = [each for each in CONVNETS if "relu" not in each.get("activation", "")]
"""A difference of second derivatives must not cross a kink."""


@pytest.mark.parametrize("options", SMOOTH, ids=str)
def test_third_derivatives_equal_central_differences(options: dict[str, str]) -> None:
    """What the image gradient of `hvp` takes: not every operator of PyTorch has them right."""
    network, theta, vector, images = case("convnet", {"activation": "softplus", **options})

    def curvature(images: Tensor) -> Tensor:
        product = hessian_vector_product(theta, network, images, LABELS, vector)
        return inner_product(product, vector)

    direction = torch.randn(images.shape, generator=generator(5), dtype=torch.float64)
    found = (torch.func.grad(curvature)(images) * direction).sum()
    expected = central_difference(curvature, images, direction)
    assert expected.abs() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block_size", [2, 5])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 16)], ids=str)
def test_the_slope_of_a_distance_is_that_of_differentiating_twice(
    shape: tuple[int, int, int], distance: str, block_size: int, compiled: bool
) -> None:
    """Images of one channel and of three, with a border of three pixels and of one."""
    network, theta = tiny_network("convnet", shape, width=16, depth=3)
    images, other = torch.randn(2, 5, *shape, generator=generator(3), dtype=torch.float64)
    target, measure = loss_gradient(theta, network, other, LABELS), DISTANCES[distance]
    gradient = constant_loss_gradient(theta, network, images, LABELS, block_size)
    found, value = distance_slope(
        theta, network, images, LABELS, gradient, target, measure, block_size
    )
    assert not found.requires_grad and not value.requires_grad

    def loss(images: Tensor) -> Tensor:
        return measure(loss_gradient(theta, network, images, LABELS), target)

    expected, wanted = torch.func.grad_and_value(loss)(images)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * scale)
    assert network.in_kernels(images) == compiled


def curvature_is_that_of_differentiating_again(
    theta: Theta, network: Network, images: Tensor, first: Theta, second: Theta
) -> None:
    """Its value, and its slope by the images."""

    def curvature(images: Tensor) -> Tensor:
        return inner_product(hessian_vector_product(theta, network, images, LABELS, second), first)

    expected, wanted = torch.func.grad_and_value(curvature)(images)
    learned = images.clone().requires_grad_()
    value = loss_curvature(theta, network, learned, LABELS, first, second)
    (found,) = torch.autograd.grad(value, learned)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-10)
    same({"images": found}, {"images": expected})


@pytest.mark.parametrize("layers", [None, 1, 2, 4])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 16)], ids=str)
def test_the_curvature_along_two_directions_is_that_of_differentiating_again(
    shape: tuple[int, int, int], layers: int | None, compiled: bool
) -> None:
    """Of all layers and of the last ones; for kernels alone."""
    network, theta = tiny_network("convnet", shape, width=16, depth=3)
    images = torch.randn(5, *shape, generator=generator(3), dtype=torch.float64)
    names = list(theta) if layers is None else last_layers(theta, layers)
    own, part = part_of(theta, names), network.holding(part_of(theta, theta.keys() - names))
    first, second = (
        {
            name: torch.randn(value.shape, generator=generator(seed, name), dtype=torch.float64)
            for name, value in own.items()
        }
        for seed in (4, 5)
    )
    if not compiled:
        pytest.skip("by kernels alone")
    assert part.in_kernels(images)
    curvature_is_that_of_differentiating_again(own, part, images, first, second)


def test_the_slope_of_the_loss_is_what_it_is_where_no_parameter_moves(compiled: bool) -> None:
    """With a direction of zeros for the first block there is nothing but the value there."""
    network, theta, vector, images = case("convnet", {})
    names = last_layers(theta, 1)
    learned = images.clone().requires_grad_()
    logits, _ = network.with_tangent(theta, part_of(vector, names), learned)
    found, expected = (
        torch.autograd.grad(F.cross_entropy(each, LABELS), learned)[0]
        for each in (logits, network(theta, learned))
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


NOT_IN_KERNELS: list[tuple[str, dict[str, int | float | str]]] = [
    ("lenet", {}),
    ("mlp", {}),
    ("resnet18", {"width": 4}),
    ("convnet", {"norm": "group"}),
    ("convnet", {"norm": "batch"}),
    ("convnet", {"pooling": "max"}),
    ("convnet", {"activation": "sigmoid"}),
    ("convnet", {"depth": 1}),
]


@pytest.mark.parametrize(
    ("head", "taken"),
    [
        ([nn.Flatten(), nn.Linear(256, 5, bias=False), nn.Identity(), nn.Linear(5, 3)], True),
        ([nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)], False),
        ([nn.Flatten(), nn.Linear(256, 5), nn.Sigmoid(), nn.Linear(5, 3)], False),
    ],
)
def test_after_the_blocks_there_are_linear_maps_alone(
    head: list[nn.Module], taken: bool, compiled: bool
) -> None:
    """Several of them, of which both directions move each; with and without a bias."""
    layers: list[nn.Module] = []
    for channels in (1, 16):
        convolution, norm = nn.Conv2d(channels, 16, 3, padding=1), nn.GroupNorm(16, 16)
        layers += [convolution, norm, nn.ReLU(), AveragePool()]
    network = Network(nn.Sequential(*layers, *head))
    images = torch.randn(5, 1, 16, 16, generator=generator(3), dtype=torch.float64)
    assert network.in_kernels(images) == (taken and compiled)
    if not network.in_kernels(images):
        return
    theta, first, second = (
        {
            name: torch.randn(value.shape, generator=generator(seed, name), dtype=torch.float64)
            for name, value in network.module.named_parameters()
        }
        for seed in (6, 7, 8)
    )
    curvature_is_that_of_differentiating_again(theta, network, images, first, second)


@pytest.mark.parametrize("block_size", [1, 2, 5])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_slope_of_a_distance_of_products_is_that_of_differentiating_again(
    distance: str, block_size: int, compiled: bool
) -> None:
    """Of blocks of images, the last of which is smaller."""
    if not compiled:
        pytest.skip("by kernels alone")
    network, theta = tiny_network("convnet", (1, 28, 28), width=16, depth=3)
    images, other = torch.randn(2, 5, 1, 28, 28, generator=generator(3), dtype=torch.float64)
    vector = {
        name: torch.randn(value.shape, generator=generator(4, name), dtype=torch.float64)
        for name, value in theta.items()
    }
    target = hessian_vector_product(theta, network, other, LABELS, vector)
    measure = DISTANCES[distance]
    found, value = product_distance_slope(
        theta, network, images, LABELS, vector, target, measure, block_size
    )
    assert not found.requires_grad and not value.requires_grad

    def loss(images: Tensor) -> Tensor:
        return measure(hessian_vector_product(theta, network, images, LABELS, vector), target)

    expected, wanted = torch.func.grad_and_value(loss)(images)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    same({"images": found}, {"images": expected})


def test_kernels_take_all_convolutions_from_some_number_of_images_on(compiled: bool) -> None:
    """So that the third block of 28 x 28 has enough tiles; 8 x 8 pixels there, four tiles each."""
    shape = (1, 28, 28)
    network = build_network("convnet", shape, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "FEWEST_TILES", 32)
        for number, enough in ((7, False), (8, True)):
            images = torch.zeros(number, *shape, requires_grad=True)
            assert network.in_kernels(images) == (compiled and enough)
    images = torch.zeros(8, *shape)
    for name, options in NOT_IN_KERNELS:
        assert not build_network(name, shape, 10, options).in_kernels(images)
    with pytest.MonkeyPatch.context() as patch:  # whose second block has no Winograd kernel
        patch.setattr(fused, "FEWEST_CHANNELS", 32)
        assert not build_network("convnet", shape, 10, {"width": 16}).in_kernels(images)


def test_blocks_that_are_not_as_the_kernels_assume_are_not_taken() -> None:
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(16, 16), nn.ReLU(), AveragePool()]
    assert fused.is_block(layers)
    for options in (
        {"padding": 0},
        {"padding": (1, 2)},
        {"padding": 1, "dilation": 2},
        {"padding": 1, "bias": False},
        {"padding": 1, "padding_mode": "reflect"},
    ):
        assert not fused.is_block([nn.Conv2d(1, 16, 3, **options), *layers[1:]])


def test_compiled_kernels_take_the_blocks(compiled: bool) -> None:
    network, theta, vector, images = case("convnet", {})
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        constant_hessian_vector_product(theta, network, images, LABELS, vector, 5)
    operators = {event.key for event in profile.key_averages()}
    assert ({"DualFirstBlock", "DualWinogradBlock"} <= operators) == compiled
    assert ("aten::conv2d" in operators) != compiled


def test_a_layer_without_a_rule_and_a_batch_norm_that_moves_are_not_taken() -> None:
    assert not has_rules(nn.Sequential(nn.Flatten(), nn.Tanh()))
    assert not has_rules(nn.Linear(2, 2))
    assert not has_rules(build_network("convnet", (1, 28, 28), 3, {"norm": "batch"}).module)


@pytest.mark.parametrize("kind", RULES)
def test_every_rule_belongs_to_a_layer_of_a_network(kind: type[nn.Module]) -> None:
    used = {
        type(layer) for name, options in CASES for layer in case(name, options)[0].module.modules()
    }
    assert kind in used
