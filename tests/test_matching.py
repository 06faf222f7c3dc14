"""The matching step: against the reference loop, finite differences and the explicit matrices."""

import copy
import ctypes
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import reference
from condensation import fused, kernels
from condensation.curvature import CURVATURE_FORMS
from condensation.curvature_sides import ConstantSide
from condensation.derivatives import classification_loss, constant_loss_gradient, loss_gradient
from condensation.distances import DISTANCES
from condensation.gap_metrics import INVERSE_DAMPING, gap_over_diagonal
from condensation.matching import (
    Curvature,
    Engine,
    Matched,
    draw_probes,
    make_matching_step,
    match_class,
    match_classes,
)
from condensation.networks import NETWORKS, Network, Theta
from condensation.randomness import generator
from condensation.siamese_augmentation import FAMILIES, SiameseAugmentation, siamese
from condensation.stacked_classes import ClassInputs, compiled_transform, stack, stacked_transform
from conftest import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    SMALL_SHAPE,
    central_difference,
    random_images,
    tiny_network,
)

WEIGHT = 0.3
NUM_REAL = 5
EVERY_NETWORK = [
    pytest.param(name, marks=pytest.mark.slow) if name in ("alexnet", "vgg11", "resnet18") else name
    for name in NETWORKS
]
"""The deep ones take minutes in all."""
FORMS = [None, *CURVATURE_FORMS]
NO_AUGMENTATION = [[None] * NUM_CLASSES]
"""Of one set."""


def curvature(
    form: str | None, real_per_class: int = NUM_REAL, layers: int | None = None
) -> Curvature | None:
    return Curvature(CURVATURE_FORMS[form], WEIGHT, real_per_class, layers) if form else None


def module_at(network: Network, theta: Theta) -> nn.Module:
    """The network as an ordinary module that holds theta."""
    module = copy.deepcopy(network.module).to_empty(device="cpu").double()
    module.load_state_dict(theta)
    return module


def case(name: str) -> tuple[Network, Theta, Tensor, Tensor, Sequence[Theta]]:
    """A network, its parameters, 2 synthetic and 5 real images a class, and 2 probes.

    The images have an axis for the classes, which the step's do not.
    """
    network, theta = tiny_network(name)
    synthetic = random_images(NUM_CLASSES, 2, stream="synthetic")
    real = random_images(NUM_CLASSES, NUM_REAL, stream="real")
    return network, theta, synthetic, real, draw_probes(theta, 2, generator(0, "probes"))


def counts(synthetic: Tensor) -> list[int]:
    return [len(images) for images in synthetic]


def match_one_set(
    network: Network,
    theta: Theta,
    synthetic: Tensor,
    real: Tensor,
    probes: Sequence[Theta],
    distance: str,
    second: Curvature | None,
) -> Matched:
    step = make_matching_step([network], DISTANCES[distance], second, counts(synthetic))
    matched = step(synthetic.flatten(0, 1)[None], real[None], [theta], [probes], NO_AUGMENTATION)
    gradient, *values = (value[0] for value in matched)
    return Matched(gradient.view_as(synthetic), *values)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_step_equals_the_class_loop_of_the_reference(
    name: str, form: str | None, distance: str
) -> None:
    network, theta, synthetic, real, probes = case(name)
    matched = match_one_set(*case(name), distance, curvature(form))
    vectors = [list(probe.values()) for probe in probes]
    expected_gradient, expected_loss = reference.matching_step(
        module_at(network, theta), [*synthetic], [*real], distance, form, WEIGHT, vectors
    )
    torch.testing.assert_close(matched.loss, expected_loss, rtol=1e-9, atol=1e-12)
    expected = expected_gradient.view_as(matched.gradient)
    torch.testing.assert_close(matched.gradient, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("form", CURVATURE_FORMS)
@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_the_term_of_the_last_layers_equals_the_reference(
    name: str, form: str, layers: int
) -> None:
    network, theta, synthetic, real, probes = case(name)
    distance, second = "squared_euclidean", curvature(form, layers=layers)
    matched = match_one_set(*case(name), distance, second)
    vectors = [list(probe.values()) for probe in probes]
    expected, _ = reference.matching_step(
        module_at(network, theta),
        [*synthetic],
        [*real],
        distance,
        form,
        WEIGHT,
        vectors,
        2 * layers,
    )
    torch.testing.assert_close(
        matched.gradient, expected.view_as(matched.gradient), rtol=1e-8, atol=1e-11
    )
    whole = match_one_set(*case(name), distance, curvature(form, layers=100))
    assert torch.equal(
        whole.gradient, match_one_set(*case(name), distance, curvature(form)).gradient
    )
    assert not torch.allclose(whole.gradient, matched.gradient, rtol=1e-3)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_image_gradients_equal_central_differences(
    name: str, form: str | None, distance: str
) -> None:
    """That of D and that of Q, each by itself: the difference of two steps is Q's, scaled."""
    network, theta, synthetic, real, probes = case(name)

    def match(images: Tensor, second: Curvature | None) -> Matched:
        return match_class(theta, network, images, real[1], 1, DISTANCES[distance], second, probes)

    first = match(synthetic[1], None)
    value, gradient = (lambda images: match(images, None).loss), first.gradient
    if form is not None:
        second = curvature(form)
        assert second is not None
        matched = match(synthetic[1], second)
        value = lambda images: match(images, second).curvature  # noqa: E731
        gradient = (matched.gradient - first.gradient) * matched.ratio / WEIGHT
    along = random_images(2, stream="direction")
    slope = central_difference(value, synthetic[1], along)
    assert slope.abs() > 1e-7
    torch.testing.assert_close((gradient * along).sum(), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", CURVATURE_FORMS)
@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_curvature_moves_every_class_as_far_as_its_weight_says(
    name: str, form: str, distance: str
) -> None:
    first = match_one_set(*case(name), distance, None)
    second = match_one_set(*case(name), distance, curvature(form))
    lengths = [value.flatten(1).norm(dim=1) for value in (first.gradient, second.gradient)]
    added = (second.gradient - first.gradient).flatten(1)
    torch.testing.assert_close(added.norm(dim=1), WEIGHT * lengths[0], rtol=1e-9, atol=0)
    cosine = (added * first.gradient.flatten(1)).sum(1) / (added.norm(dim=1) * lengths[0])
    torch.testing.assert_close(cosine, second.cosine, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(first.loss, second.loss, rtol=1e-12, atol=0)
    assert first.curvature.eq(0).all() and second.ratio.gt(0).all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_both_terms_are_zero_where_synthetic_and_real_images_are_the_same(
    name: str, form: str | None, distance: str
) -> None:
    network, theta, _, real, probes = case(name)
    if distance == "layerwise_cosine":
        # A row whose gradient is zero has no direction and counts 1: smooth units have none.
        network, theta = tiny_network(name, activation="softplus")
        probes = draw_probes(theta, 2, generator(0, "probes"))
    matched = match_one_set(network, theta, real, real, probes, distance, curvature(form))
    assert matched.loss.abs().max() < 1e-8 and matched.curvature.abs().max() < 1e-8


def small_images(number: int, stream: str) -> Tensor:
    return random_images(number, stream=stream, image_shape=SMALL_SHAPE)


def flat(theta: Theta) -> Tensor:
    return torch.cat([value.flatten() for value in theta.values()])


def hessian(network: Network, theta: Theta, images: Tensor, class_index: int) -> Tensor:
    """The explicit Hessian of the loss, by double differentiation of the whole vector."""
    sizes = [value.numel() for value in theta.values()]

    def loss(vector: Tensor) -> Tensor:
        parts = zip(theta.items(), vector.split(sizes), strict=True)
        at = {name: part.view(value.shape) for (name, value), part in parts}
        labels = torch.full((len(images),), class_index)
        return classification_loss(at, network, images, labels)

    matrix: Tensor = torch.autograd.functional.hessian(loss, flat(theta))
    return matrix


def gauss_newton(network: Network, theta: Theta, images: Tensor) -> Tensor:
    """The explicit Gauss-Newton matrix: the mean of J' (diag(p) - p p') J."""
    sizes = [value.numel() for value in theta.values()]

    def logits(vector: Tensor) -> Tensor:
        parts = zip(theta.items(), vector.split(sizes), strict=True)
        return network({name: part.view(value.shape) for (name, value), part in parts}, images)

    jacobian = torch.autograd.functional.jacobian(logits, flat(theta))
    probability = network(theta, images).softmax(1)
    of_loss = torch.diag_embed(probability) - probability[:, :, None] * probability[:, None]
    matrix: Tensor = torch.einsum("bip,bij,bjq->pq", jacobian, of_loss, jacobian) / len(images)
    return matrix


def test_hvp_approaches_the_explicit_hessians_as_probes_grow() -> None:
    """The mean of |(H_S - H_T) v|^2 over Rademacher v is the squared Frobenius norm."""
    network, theta = tiny_network("mlp", SMALL_SHAPE, width=3)
    synthetic, real = small_images(2, "synthetic"), small_images(5, "real")
    expected = hessian(network, theta, synthetic, 0) - hessian(network, theta, real, 0)
    errors = []
    for num_probes in (8, 512):
        probes = draw_probes(theta, num_probes, generator(0, "probes"))
        distance, second = DISTANCES["squared_euclidean"], curvature("hvp")
        matched = match_class(theta, network, synthetic, real, 0, distance, second, probes)
        errors.append((matched.curvature / expected.square().sum() - 1).abs().item())
    assert errors[1] < 0.1 and errors[1] < errors[0]


@pytest.mark.parametrize("form", ["quadratic", "ggn", "ggn_inverse"])
def test_the_gap_is_weighed_by_the_explicit_matrix(form: str) -> None:
    """Three real images: conjugate gradients end after as many steps as G has ranks, here 6."""
    network, theta = tiny_network("mlp", SMALL_SHAPE, width=3)
    synthetic, real = small_images(2, "synthetic"), small_images(3, "real")
    labels = torch.zeros(3, dtype=torch.int64)
    target = flat(loss_gradient(theta, network, real, labels))
    gap = target - flat(loss_gradient(theta, network, synthetic, labels[:2]))
    matrix = (
        hessian(network, theta, real, 0)
        if form == "quadratic"
        else gauss_newton(network, theta, real)
    )
    if form == "ggn_inverse":
        damping = INVERSE_DAMPING * (target @ matrix @ target) / (target @ target)
        matrix = torch.linalg.inv(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype))
    distance = DISTANCES["squared_euclidean"]
    matched = match_class(theta, network, synthetic, real, 0, distance, curvature(form), [])
    torch.testing.assert_close(matched.curvature, gap @ matrix @ gap, rtol=1e-9, atol=1e-12)
    if form != "quadratic":
        assert matched.curvature >= 0 and torch.linalg.eigvalsh(matrix).min() > -1e-12


@pytest.mark.parametrize("form", ["ggn", "ggn_diagonal", "ggn_inverse"])
@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_the_gauss_newton_forms_are_never_negative(name: str, form: str) -> None:
    for distance in DISTANCES:
        assert match_one_set(*case(name), distance, curvature(form)).curvature.min() >= 0


def test_the_diagonal_approaches_the_explicit_one_as_probes_grow() -> None:
    """From Rademacher probes; the gap divided by it and its mean is what the form returns."""
    network, theta = tiny_network("mlp", SMALL_SHAPE, width=3)
    real, labels = small_images(5, "real"), torch.zeros(5, dtype=torch.int64)
    expected = gauss_newton(network, theta, real).diagonal()
    target, ones = (
        {name: function(value) for name, value in theta.items()}
        for function in (torch.sin, torch.ones_like)
    )
    errors = []
    for num_probes in (16, 8192):
        probes = draw_probes(theta, num_probes, generator(0, "probes"))
        side = ConstantSide(theta, network, real, labels, target, probes, ones, 5)
        (weighed,) = gap_over_diagonal(side)
        damped = 1 / flat(weighed)
        # The mean of damped is twice the mean of the estimate.
        estimate = damped - damped.mean() / 2
        errors.append(((estimate - expected).norm() / expected.norm()).item())
    assert errors[1] < 0.12 and errors[1] < errors[0] / 10


def test_lookahead_matches_the_hessian_times_the_real_gradient() -> None:
    """With squared Euclidean distance it is |gap - eta (H_S - H_T) g_T|^2 + O(eta^2)."""
    network, theta = tiny_network("mlp", SMALL_SHAPE, width=3, activation="softplus")
    synthetic, real = small_images(2, "synthetic"), small_images(5, "real")
    labels = torch.zeros(5, dtype=torch.int64)
    target = constant_loss_gradient(theta, network, real, labels, 5)
    gap = flat(loss_gradient(theta, network, synthetic, labels[:2])) - flat(target)
    difference = hessian(network, theta, synthetic, 0) - hessian(network, theta, real, 0)
    distance = DISTANCES["squared_euclidean"]
    matched = match_class(theta, network, synthetic, real, 0, distance, curvature("lookahead"), [])
    expected = (gap - 0.01 * difference @ flat(target)).square().sum()
    change = matched.curvature - gap.square().sum()
    torch.testing.assert_close(change, expected - gap.square().sum(), rtol=0.05, atol=0)


def test_without_probes_the_real_gradient_is_the_probe() -> None:
    network, theta, synthetic, real, _ = case("mlp")
    labels = torch.ones(NUM_REAL, dtype=torch.int64)
    target = constant_loss_gradient(theta, network, real[1], labels, NUM_REAL)
    alone, given = (
        match_class(
            theta, network, synthetic[1], real[1], 1, DISTANCES["cosine"], curvature("hvp"), probes
        )
        for probes in ([], [target])
    )
    torch.testing.assert_close(alone.gradient, given.gradient, rtol=1e-9, atol=1e-14)


def test_curvature_takes_the_first_real_images() -> None:
    network, theta, synthetic, real, probes = case("mlp")
    distance = DISTANCES["cosine"]
    part = match_class(
        theta, network, synthetic[0], real[0], 0, distance, curvature("hvp", 2), probes
    )
    alone = match_class(
        theta, network, synthetic[0], real[0, :2], 0, distance, curvature("hvp"), probes
    )
    whole = match_class(
        theta, network, synthetic[0], real[0], 0, distance, curvature("hvp"), probes
    )
    torch.testing.assert_close(part.curvature, alone.curvature, rtol=1e-12, atol=0)
    torch.testing.assert_close(part.loss, whole.loss, rtol=1e-12, atol=0)
    assert part.curvature != whole.curvature


@pytest.mark.parametrize("form", FORMS)
def test_sets_are_matched_as_if_each_were_alone(form: str | None) -> None:
    network, theta, synthetic, real, probes = case("convnet")
    other = {name: value.flip(0) for name, value in theta.items()}
    distance = DISTANCES["squared_euclidean"]
    step = make_matching_step([network] * 2, distance, curvature(form), counts(synthetic))
    together = step(
        torch.stack([synthetic, real[:, :2]]).flatten(1, 2),
        torch.stack([real, real.flip(1)]),
        [theta, other],
        [probes, probes[::-1]],
        NO_AUGMENTATION * 2,
    )
    inputs = [(theta, synthetic, real, probes), (other, real[:, :2], real.flip(1), probes[::-1])]
    for k, (at, images, batch, vectors) in enumerate(inputs):
        alone = match_one_set(
            network, at, images, batch, vectors, "squared_euclidean", curvature(form)
        )
        for ours, expected in zip(together, alone, strict=True):
            assert torch.equal(ours[k].view_as(expected), expected)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", [None, "hvp"])
def test_numbers_of_images_that_differ(form: str | None, distance: str) -> None:
    """Each class counts once, its gradient is the mean of its own images: as in the reference."""
    network, theta = tiny_network("mlp", activation="softplus")
    real, probes = case("mlp")[3], draw_probes(theta, 2, generator(0, "probes"))
    images = random_images(6, stream="ragged")
    step = make_matching_step([network], DISTANCES[distance], curvature(form), [2, 1, 3])
    matched = step(images[None], real[None], [theta], [probes], NO_AUGMENTATION)
    expected_gradient, expected_loss = reference.matching_step(
        module_at(network, theta),
        images.split([2, 1, 3]),
        [*real],
        distance,
        form,
        WEIGHT,
        [list(probe.values()) for probe in probes],
    )
    torch.testing.assert_close(matched.gradient[0], expected_gradient, rtol=1e-7, atol=1e-11)
    torch.testing.assert_close(matched.loss[0], expected_loss, rtol=1e-9, atol=1e-12)


def test_probes_are_signs_and_the_same_for_the_same_stream() -> None:
    _, theta = tiny_network("mlp")
    first, second = draw_probes(theta, 2, generator(0, "probes"))
    again, _ = draw_probes(theta, 2, generator(0, "probes"))
    assert first.keys() == theta.keys()
    for name, value in theta.items():
        assert first[name].shape == value.shape and first[name].abs().eq(1).all()
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["linear0.weight"], second["linear0.weight"])


@pytest.mark.parametrize("compiled", [False, True])
def test_result_does_not_depend_on_the_number_of_threads(compiled: bool) -> None:
    before, results = torch.get_num_threads(), []
    network, theta = tiny_network("convnet", width=8)
    inputs = case("convnet")[2:4]
    probes = draw_probes(theta, 1, generator(0, "probes"))
    assert not compiled or kernels.build() == ""
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert kernels.usable(torch.float64, 8) == compiled
            results.append(
                match_one_set(
                    network, theta, *inputs, probes, "squared_euclidean", curvature("hvp")
                )
            )
    finally:
        torch.set_num_threads(before)
        kernels.discard()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    """What the C++ compiler makes of the kernels, once: it takes seconds."""
    if reason := kernels.build():
        pytest.skip(reason)
    (built,) = kernels._library
    kernels.discard()
    return built


@pytest.fixture
def put_to_use(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernels are used."""
    monkeypatch.setattr(kernels, "_library", [library])


@pytest.fixture
def called(put_to_use: None, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The compiled kernels, which take small networks here, too; and those that were called."""
    monkeypatch.setattr(fused, "FEWEST_CHANNELS", 8)
    monkeypatch.setattr(fused, "FEWEST_TILES", 1)
    names, call = set(), kernels.call

    def watched(name: str, *arguments: Tensor | float, sizes: tuple[int, ...]) -> None:
        names.add(name)
        call(name, *arguments, sizes=sizes)

    monkeypatch.setattr(kernels, "call", watched)
    return names


BY_KERNELS: list[tuple[str | None, str | None, int | None]] = [
    *((None, family, None) for family in (None, *FAMILIES)),
    *((form, None, layers) for form in CURVATURE_FORMS for layers in (None, 1)),
    *((form, "scale", None) for form in CURVATURE_FORMS),
]
"""Forms, families of augmentation, and numbers of layers that the term is about."""


@pytest.mark.parametrize(("form", "family", "layers"), BY_KERNELS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_synthetic_side_by_kernels_equals_the_reference(
    distance: str, form: str | None, family: str | None, layers: int | None, called: set[str]
) -> None:
    """In float64, which is not lowered; classes of different numbers of images."""
    network, theta = tiny_network("convnet", width=8)
    sizes, real = [1, 3, 2], random_images(NUM_CLASSES, NUM_REAL, stream="real")
    images = random_images(6, 1, stream="synthetic").flatten(0, 1)
    probes = draw_probes(theta, 2, generator(0, "probes"))
    draws = [None if family is None else siamese_draw(family)] * NUM_CLASSES
    lowered, measure = Engine(autocast=torch.bfloat16), DISTANCES[distance]
    second = curvature(form, layers=layers)
    step = make_matching_step([network], measure, second, sizes, engine=lowered)
    matched = step(images[None], real[None], [theta], [probes], [draws])
    # A term of some layers alone goes by PyTorch's operators.
    assert ({"first_dual_images", "dual_backward"} <= called) == (layers is None)
    assert ("first_mixed_images" in called) == (form == "hvp" and layers is None)

    module, vectors = module_at(network, theta), [list(probe.values()) for probe in probes]
    for index, (own, batch, draw, found, loss, term) in enumerate(
        zip(
            images.split(sizes),
            real,
            draws,
            matched.gradient[0].split(sizes),
            matched.loss[0],
            matched.curvature[0],
            strict=True,
        )
    ):
        learned = own.clone().requires_grad_()
        ours, theirs = (each if draw is None else draw.apply(each) for each in (learned, batch))
        wanted, of_form = reference.matching_terms(
            module, ours, theirs, index, distance, form, vectors, 2 * (layers or 0)
        )
        (expected,) = torch.autograd.grad(wanted, learned, retain_graph=True)
        if of_form is not None:
            (by_form,) = torch.autograd.grad(of_form, learned)
            expected = expected + WEIGHT * expected.norm() / by_form.norm() * by_form
            torch.testing.assert_close(term, of_form, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=str)
def test_the_synthetic_side_by_kernels_is_the_same_on_any_number_of_threads(
    shape: tuple[int, int, int], form: str | None, put_to_use: None
) -> None:
    """In float32, at the sizes of the kernels: classes of few images go by PyTorch's operators.

    The step is that of float64, but for what rounding does where a unit is about to be switched.
    """
    sizes, lowered = [1, 8, 9], Engine(autocast=torch.bfloat16)
    network, theta = tiny_network("convnet", shape, width=32, depth=2)
    draw = {"stream": "synthetic", "image_shape": shape}
    images, real = random_images(18, **draw), random_images(NUM_CLASSES, 3, **draw)  # type: ignore[arg-type]
    (probe,) = draw_probes(theta, 1, generator(0, "probes"))
    before, results = torch.get_num_threads(), []
    try:
        assert [network.in_kernels(each.float()) for each in images.split(sizes)] == [
            False,
            True,
            True,
        ]
        for threads, dtype in ((1, torch.float32), (3, torch.float32), (3, torch.float64)):
            torch.set_num_threads(threads)
            step = make_matching_step(
                [network], DISTANCES["cosine"], curvature(form), sizes, engine=lowered
            )
            at, *probes = (
                {name: value.to(dtype) for name, value in each.items()} for each in (theta, probe)
            )
            batches = real.to(dtype)[None]
            matched = step(images.to(dtype)[None], batches, [at], [probes], NO_AUGMENTATION)
            results.append(matched.gradient)
    finally:
        torch.set_num_threads(before)
    one, three, exact = results
    assert torch.equal(one, three)
    gaps = (one.double() - exact)[0].split(sizes), exact[0].split(sizes)
    assert all(gap.norm() < 0.1 * own.norm() for gap, own in zip(*gaps, strict=True))


def test_a_form_without_a_slope_goes_by_pytorchs_operators(called: set[str]) -> None:
    network, theta = tiny_network("convnet", width=8)
    _, _, synthetic, real, _ = case("convnet")
    second = curvature("lookahead")
    assert second is not None
    without = replace(second, form=replace(second.form, slope=None))
    results = []
    for term in (second, without):
        called.clear()
        step = make_matching_step(
            [network],
            DISTANCES["cosine"],
            term,
            counts(synthetic),
            engine=Engine(autocast=torch.bfloat16),
        )
        images = synthetic.flatten(0, 1)[None]
        results.append(step(images, real[None], [theta], [[]], NO_AUGMENTATION))
        assert ("first_dual_images" in called) == (term is second)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_where_nothing_is_lowered_the_synthetic_side_is_pytorchs(called: set[str]) -> None:
    """Its rounding is less than that of Winograd's convolutions."""
    network, theta = tiny_network("convnet", width=8)
    _, _, synthetic, real, _ = case("convnet")
    probes = draw_probes(theta, 1, generator(0, "probes"))
    match_one_set(network, theta, synthetic, real, [], "squared_euclidean", None)
    assert {"first_backward", "block_backward"} <= called  # of the real side
    match_one_set(network, theta, synthetic, real, probes, "squared_euclidean", curvature("ggn"))
    assert not {name for name in called if "images" in name or "mixed" in name}


def siamese_draw(family: str) -> SiameseAugmentation:
    """Return a draw of a family with a single entry, other than nothing."""
    place = FAMILIES.index(family)
    for seed in range(1000):
        stream = generator(seed, family)
        if int(torch.randint(len(FAMILIES), (), generator=generator(seed, family))) == place:
            draw = siamese(1, IMAGE_SHAPE[1:], stream)
            if family != "flip" or draw.matrices[0, 0, 0] < 0:
                return draw
    raise AssertionError(f"{family} is never drawn")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_one_draw_is_applied_to_real_and_synthetic_images(form: str | None, family: str) -> None:
    """The losses are those of images that were changed before, each by the draw of its class."""
    network, theta, synthetic, real, probes = case("mlp")
    draws = [siamese_draw(family), None, siamese_draw("crop")]

    def change(side: Tensor) -> Tensor:
        parts = zip(side, draws, strict=True)
        return torch.stack([part if draw is None else draw.apply(part) for part, draw in parts])

    distance = DISTANCES["squared_euclidean"]
    step = make_matching_step([network], distance, curvature(form), counts(synthetic))
    images, changed = (side.flatten(0, 1)[None] for side in (synthetic, change(synthetic)))
    with_draws = step(images, real[None], [theta], [probes], [draws])
    before = step(changed, change(real)[None], [theta], [probes], NO_AUGMENTATION)
    without = step(images, real[None], [theta], [probes], NO_AUGMENTATION)
    torch.testing.assert_close(with_draws.loss, before.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(with_draws.curvature, before.curvature, rtol=1e-9, atol=1e-12)
    assert torch.equal(with_draws.gradient[0, 2:4], without.gradient[0, 2:4])
    assert not torch.allclose(with_draws.loss[0, 0], without.loss[0, 0], rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_image_gradients_flow_through_the_augmentation(form: str | None, family: str) -> None:
    network, theta, synthetic, real, probes = case("mlp")
    draw, distance = siamese_draw(family), DISTANCES["squared_euclidean"]

    def match(images: Tensor, second: Curvature | None) -> Matched:
        return match_class(theta, network, images, real[1], 1, distance, second, probes, draw)

    first = match(synthetic[1], None)
    value, gradient = (lambda images: match(images, None).loss), first.gradient
    if form is not None:
        matched = match(synthetic[1], curvature(form))
        value = lambda images: match(images, curvature(form)).curvature  # noqa: E731
        gradient = (matched.gradient - first.gradient) * matched.ratio / WEIGHT
    along = random_images(2, stream="direction")
    slope = central_difference(value, synthetic[1], along)
    assert slope.abs() > 1e-7
    torch.testing.assert_close((gradient * along).sum(), slope, rtol=1e-5, atol=1e-7)


def classes_together(
    form: str | None, counts: tuple[int, ...], name: str, augmented: bool, layers: int | None = None
) -> tuple[list[Matched], list[Matched]]:
    """The classes by one transform, and one after the other."""
    network, theta, synthetic, real, probes = case(name)
    distance, second = DISTANCES["squared_euclidean"], curvature(form, layers=layers)
    images = [part[:number] for part, number in zip(synthetic, counts, strict=True)]
    siamese_draws = [siamese_draw("scale") if augmented else None for _ in counts]
    together = match_classes(
        theta, network, images, list(real), 0, distance, second, probes, siamese_draws
    )
    alone = [
        match_class(theta, network, *sides, c, distance, second, probes, siamese_draws[c])
        for c, sides in enumerate(zip(images, real, strict=True))
    ]
    return together, alone


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("counts", [(2, 2, 2), (2, 1, 2)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_one_transform_of_all_classes_equals_the_class_loop(
    name: str, form: str | None, counts: tuple[int, ...], augmented: bool
) -> None:
    together, alone = classes_together(form, counts, name, augmented)
    for ours, expected in zip(together, alone, strict=True):
        for got, wanted in zip(ours, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("form", CURVATURE_FORMS)
def test_one_transform_equals_the_class_loop_where_the_term_is_about_the_last_layer(
    form: str,
) -> None:
    together, alone = classes_together(form, (2, 2, 2), "mlp", False, layers=1)
    for ours, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(ours.gradient, expected.gradient, rtol=1e-8, atol=1e-12)


COMPILED = [
    ("mlp", None, "aot_eager"),
    *(
        pytest.param(name, form, "inductor", marks=pytest.mark.slow)
        for name in ("mlp", "convnet")
        for form in FORMS
    ),
]
"""The fast case is traced as the others are, without a break, but not compiled further."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("name", "form", "backend"), COMPILED)
def test_the_compiled_transform_equals_the_eager_one(
    name: str, form: str | None, backend: str
) -> None:
    """It is asked for as one graph: a break would be an error."""
    network, theta, synthetic, real, probes = case(name)
    labels = torch.arange(NUM_CLASSES)[:, None].expand(-1, 2)
    target = {key: value.cos() for key, value in theta.items()}
    constants = {None: [], "hvp": probes, "lookahead": [theta, target]}.get(form, [target])
    inputs = stack(
        [
            ClassInputs(images, own, target, [*probes], [*constants])
            for images, own in zip(synthetic, labels, strict=True)
        ]
    )
    second = CURVATURE_FORMS[form] if form else None
    arguments = (network.module, DISTANCES["squared_euclidean"], second, tuple(theta))
    torch.compiler.reset()
    ways = (stacked_transform(*arguments), compiled_transform(*arguments, backend))
    results = [way(theta, network.statistics, inputs) for way in ways]
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_host_waits_for_nothing_in_a_step(
    form: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No number goes from the device to Python: on CUDA each would stop the queue of kernels."""
    network, theta, synthetic, real, probes = case("mlp")

    def wait(*arguments: object) -> None:
        raise AssertionError("the host waits")

    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__"):
        monkeypatch.setattr(Tensor, name, wait)
    distance, draws = DISTANCES["squared_euclidean"], [None] * NUM_CLASSES
    sides = (list(synthetic), list(real), 0)
    match_classes(theta, network, *sides, distance, curvature(form), probes, draws)
