"""The matching step: against the reference loop, finite differences and the explicit Hessians."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import reference
from condensation.derivatives import classification_loss
from condensation.distances import DISTANCES
from condensation.matching import (
    CURVATURE_TERMS,
    Curvature,
    RealSide,
    draw_probes,
    make_matching_step,
    match_class,
)
from condensation.networks import NETWORKS, Network, Theta
from condensation.randomness import generator
from conftest import NUM_CLASSES, SMALL_SHAPE, central_difference, random_images, tiny_network

WEIGHT = 0.3
FORMS = [None, *CURVATURE_TERMS]


def curvature(form: str | None) -> Curvature | None:
    return Curvature(CURVATURE_TERMS[form], WEIGHT) if form else None


def module_at(network: Network, theta: Theta) -> nn.Module:
    """The network as an ordinary module that holds theta."""
    module = copy.deepcopy(network.module).to_empty(device="cpu").double()
    module.load_state_dict(theta)
    return module


def case(name: str) -> tuple[Network, Theta, Tensor, Tensor, Sequence[Theta]]:
    """A network, its parameters, 2 synthetic and 5 real images a class, and 2 probes."""
    network, theta = tiny_network(name)
    synthetic = random_images(NUM_CLASSES, 2, stream="synthetic")
    real = random_images(NUM_CLASSES, 5, stream="real")
    return network, theta, synthetic, real, draw_probes(theta, 2, generator(0, "probes"))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", [None, "hvp"])
@pytest.mark.parametrize("name", NETWORKS)
def test_step_equals_the_class_loop_of_the_reference(
    name: str, form: str | None, distance: str
) -> None:
    network, theta, synthetic, real, probes = case(name)
    step = make_matching_step(network, DISTANCES[distance], curvature(form))
    gradient, loss = step(synthetic, real, theta, probes)
    vectors = [list(probe.values()) for probe in probes] if form else []
    expected_gradient, expected_loss = reference.matching_step(
        module_at(network, theta), synthetic, real, distance, WEIGHT, vectors
    )
    torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_image_gradient_equals_central_differences(
    name: str, form: str | None, distance: str
) -> None:
    network, theta, synthetic, real, probes = case(name)

    def loss(images: Tensor) -> Tensor:
        return match_class(
            theta, network, images, real[1], 1, DISTANCES[distance], curvature(form), probes
        )[1]

    gradient, _ = match_class(
        theta, network, synthetic[1], real[1], 1, DISTANCES[distance], curvature(form), probes
    )
    along = random_images(2, stream="direction")
    slope = central_difference(loss, synthetic[1], along)
    assert slope.abs() > 1e-6
    torch.testing.assert_close((gradient * along).sum(), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", CURVATURE_TERMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_curvature_moves_every_class(name: str, form: str, distance: str) -> None:
    network, theta, synthetic, real, probes = case(name)
    first, _ = make_matching_step(network, DISTANCES[distance], None)(
        synthetic, real, theta, probes
    )
    second, _ = make_matching_step(network, DISTANCES[distance], curvature(form))(
        synthetic, real, theta, probes
    )
    assert ((second - first).flatten(1).norm(dim=1) > 1e-8).all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_is_zero_where_synthetic_and_real_images_are_the_same(
    name: str, form: str | None, distance: str
) -> None:
    network, theta, _, real, probes = case(name)
    if distance == "layerwise_cosine":
        # A row whose gradient is zero has no direction and counts 1: smooth units have none.
        network, theta = tiny_network(name, activation="softplus")
    step = make_matching_step(network, DISTANCES[distance], curvature(form))
    _, loss = step(real, real, theta, probes)
    assert loss.abs().max() < 1e-8


def test_hvp_approaches_the_explicit_hessians_as_probes_grow() -> None:
    """The mean of |(H_S - H_T) v|^2 over Rademacher v is the squared Frobenius norm."""
    network, theta = tiny_network("mlp", SMALL_SHAPE, width=3)
    synthetic = random_images(2, stream="synthetic", image_shape=SMALL_SHAPE)
    real = random_images(5, stream="real", image_shape=SMALL_SHAPE)
    sizes = [value.numel() for value in theta.values()]

    def hessian(images: Tensor) -> Tensor:
        def loss(vector: Tensor) -> Tensor:
            parts = zip(theta.items(), vector.split(sizes), strict=True)
            at = {name: part.view(value.shape) for (name, value), part in parts}
            labels = torch.zeros(len(images), dtype=torch.int64)
            return classification_loss(at, network, images, labels)

        matrix: Tensor = torch.autograd.functional.hessian(
            loss, torch.cat([value.flatten() for value in theta.values()])
        )
        return matrix

    expected = (hessian(synthetic) - hessian(real)).square().sum()
    labels = torch.zeros(5, dtype=torch.int64)
    side = RealSide(theta, network, real, labels, {}, 5)
    errors = []
    for num_probes in (8, 512):
        probes = draw_probes(theta, num_probes, generator(0, "probes"))
        term = CURVATURE_TERMS["hvp"](side, DISTANCES["squared_euclidean"], probes)
        errors.append((term(synthetic, labels[:2]) / expected - 1).abs().item())
    assert errors[1] < 0.1 and errors[1] < errors[0]


def test_probes_are_signs_and_the_same_for_the_same_stream() -> None:
    _, theta = tiny_network("mlp")
    first, second = draw_probes(theta, 2, generator(0, "probes"))
    again, _ = draw_probes(theta, 2, generator(0, "probes"))
    assert first.keys() == theta.keys()
    for name, value in theta.items():
        assert first[name].shape == value.shape and first[name].abs().eq(1).all()
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["linear0.weight"], second["linear0.weight"])


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    network, theta, synthetic, real, probes = case("convnet")
    step = make_matching_step(network, DISTANCES["squared_euclidean"], curvature("hvp"))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(step(synthetic, real, theta, probes))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
