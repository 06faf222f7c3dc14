"""Gradients by `torch.compile` and in bfloat16: the same, as one graph for one shape."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from condensation import derivatives, stacked_classes
from condensation.compiled_gradients import SumGradient, compiled_gradient, sum_gradient
from condensation.curvature import CURVATURE_FORMS
from condensation.derivatives import constant_loss_gradient
from condensation.distances import DISTANCES
from condensation.matching import (
    REAL_BLOCK,
    Curvature,
    Engine,
    Matched,
    draw_probes,
    match_classes,
)
from condensation.networks import Theta
from condensation.precisions import PRECISIONS
from condensation.randomness import generator
from condensation.stacked_classes import ClassInputs
from condensation.training import train
from conftest import IMAGE_SHAPE, NUM_CLASSES, random_images, tiny_network

BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
"""The fast one is traced as the other is, without a break, but not compiled further."""
COMPILED_NETWORKS = ["mlp", "convnet"]
SEVEN = torch.arange(7) % NUM_CLASSES
BFLOAT16_ERROR = 2**-5
"""Relative, of a gradient: eight bits of each operand, through a few layers."""

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:TensorFloat32"
)


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> None:
    """PyTorch keeps no more than eight graphs of `torch.func.grad`, whatever it is of."""
    torch.compiler.reset()
    counters.clear()


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compile by this one."""
    name: str = request.param
    gradient = partial(compiled_gradient, backend=name)
    monkeypatch.setattr(derivatives, "compiled_gradient", gradient)
    transform = partial(stacked_classes.compiled_transform, backend=name)
    monkeypatch.setattr(stacked_classes, "compiled_transform", transform)
    return name


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def distance_between(a: Theta, b: Theta) -> float:
    """The length of the difference, relative to that of the second."""
    assert a.keys() == b.keys()
    lengths = [
        torch.cat([value.flatten() for value in each]).norm()
        for each in ([a[key] - b[key] for key in b], b.values())
    ]
    return float(lengths[0] / lengths[1])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("name", COMPILED_NETWORKS)
def test_the_compiled_gradient_equals_the_eager_one_and_is_compiled_once(
    name: str, backend: str, precision: str
) -> None:
    """Blocks of three, the last of a batch smaller; then a smaller batch. A break is an error."""
    network, theta = tiny_network(name)
    autocast = PRECISIONS[precision]
    images = random_images(7, stream="batch")
    if autocast is not None:
        theta, images = {key: value.float() for key, value in theta.items()}, images.float()
    for number in (7, 2):
        arguments = (theta, network, images[:number], SEVEN[:number], 3)
        found = constant_loss_gradient(*arguments, compiled=True, autocast=autocast)
        expected = constant_loss_gradient(*arguments, autocast=autocast)
        assert distance_between(found, expected) < (1e-10 if autocast is None else BFLOAT16_ERROR)
        assert {value.dtype for value in found.values()} == {images.dtype}
    assert graphs() == 1


@pytest.mark.parametrize("name", COMPILED_NETWORKS)
def test_bfloat16_rounds_the_forward_pass_and_nothing_else(name: str) -> None:
    network, theta = tiny_network(name, activation="silu")  # no kinks to be rounded over
    theta = {key: value.float() for key, value in theta.items()}
    images = random_images(7, stream="batch").float()
    exact = constant_loss_gradient(theta, network, images, SEVEN, 4)
    found = constant_loss_gradient(theta, network, images, SEVEN, 4, autocast=torch.bfloat16)
    again = constant_loss_gradient(theta, network, images, SEVEN, 4, autocast=torch.bfloat16)
    assert 1e-4 < distance_between(found, exact) < BFLOAT16_ERROR
    assert all(value.dtype == torch.float32 for value in found.values())
    assert all(torch.equal(found[key], again[key]) for key in found)
    assert not torch.is_autocast_enabled("cpu")


FORMS = [None, *CURVATURE_FORMS]
META = torch.device("meta")


class OnDevice(TorchDispatchMode):
    """Refuses operators that take or make a tensor elsewhere than on the device `meta`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            assert not isinstance(value, Tensor) or value.device == META, func
        return result


@pytest.mark.parametrize(
    ("form", "distance"),
    [*((form, "squared_euclidean") for form in CURVATURE_FORMS), *((None, d) for d in DISTANCES)],
)
@pytest.mark.parametrize("name", ["mlp", "convnet", "lenet"])
def test_what_is_compiled_has_every_tensor_on_the_device(
    name: str, form: str | None, distance: str
) -> None:
    """PyTorch makes no CUDA graph of what has a tensor of the host's, and says nothing of it."""
    network, theta = tiny_network(name)
    theta = {key: value.to(META) for key, value in theta.items()}
    images = torch.zeros(NUM_CLASSES, 2, *IMAGE_SHAPE, dtype=torch.float64, device=META)
    labels = torch.zeros(NUM_CLASSES, 2, dtype=torch.int64, device=META)
    several = {key: value.expand(NUM_CLASSES, *value.shape).clone() for key, value in theta.items()}
    constants = {None: [], "lookahead": [several] * 2}.get(form, [several])
    second, names = (CURVATURE_FORMS[form], tuple(theta)) if form else (None, ())
    transform = stacked_classes.stacked_transform(
        network.module, DISTANCES[distance], second, names
    )
    factor = torch.zeros((), dtype=torch.float64, device=META)
    with OnDevice():
        sum_gradient(network.module)(theta, {}, images[0], labels[0], factor)
        transform(theta, {}, ClassInputs(images, labels, several, [several], constants))


def test_a_tensor_of_the_host_is_noticed() -> None:
    on_device, on_host = torch.ones(3, device=META), torch.ones(())
    with pytest.raises(AssertionError, match="mul"), OnDevice():
        on_device * on_host


def matched(
    form: str | None,
    engine: Engine,
    dtype: torch.dtype = torch.float64,
    layers: int | None = None,
    device: str = "cpu",
    step: int = 0,
) -> list[Matched]:
    """Three classes of two synthetic images, and of 5, 5 and 3 real ones."""
    network, theta = tiny_network("mlp")
    theta = {key: (1 + step / 10) * value.to(device, dtype) for key, value in theta.items()}
    synthetic = random_images(NUM_CLASSES, 2, stream=f"synthetic {step}").to(device, dtype)
    real = [*random_images(NUM_CLASSES, 5, stream=f"real {step}").to(device, dtype)]
    real[2] = real[2][:3]
    second = Curvature(CURVATURE_FORMS[form], 0.3, 4, layers) if form else None
    return match_classes(
        theta,
        network,
        list(synthetic),
        real,
        0,
        DISTANCES["squared_euclidean"],
        second,
        draw_probes(theta, 1, generator(0, "probes")),
        [None] * NUM_CLASSES,
        engine,
    )


@pytest.mark.parametrize(
    ("form", "layers", "backend"),
    [
        (None, None, "aot_eager"),
        ("lookahead", None, "aot_eager"),  # a second gradient, of fewer real images
        ("lookahead", 2, "aot_eager"),  # and with respect to some of the parameters
        *(pytest.param(form, None, "inductor", marks=pytest.mark.slow) for form in FORMS),
    ],
    indirect=["backend"],
)
def test_the_compiled_step_equals_the_eager_one(
    form: str | None, layers: int | None, backend: str
) -> None:
    """Two graphs: one for the real sides of all classes, one for the synthetic side of all.

    And one for what curvature takes from the real images, if that is a gradient.
    """
    found = matched(form, Engine(compiled=True), layers=layers)
    assert graphs() == (3 if form == "lookahead" else 2)
    for ours, expected in zip(found, matched(form, Engine(), layers=layers), strict=True):
        for got, wanted in zip(ours, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_what_curvature_takes_is_not_filled_up_to_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four images go through the network as four, and those of a smaller class as four, too."""
    sizes: list[int] = []

    def counting(module: nn.Module, autocast: torch.dtype | None = None) -> SumGradient:
        eager = sum_gradient(module, autocast)

        def gradient(theta: Theta, fixed: Theta, images: Tensor, *others: Tensor) -> Theta:
            sizes.append(len(images))
            return eager(theta, fixed, images, *others)

        return gradient

    monkeypatch.setattr(derivatives, "compiled_gradient", counting)
    transform = stacked_classes.stacked_transform
    monkeypatch.setattr(stacked_classes, "compiled_transform", transform)
    matched("lookahead", Engine(compiled=True))
    assert sizes == [REAL_BLOCK["cpu"], 4] * NUM_CLASSES


@pytest.mark.parametrize("form", FORMS)
def test_a_step_with_the_real_gradient_in_bfloat16(form: str | None) -> None:
    """It changes the images' gradient by no more than rounding, and its type not at all."""
    engines = (Engine(autocast=torch.bfloat16), Engine())
    for found, exact in zip(*(matched(form, e, torch.float32) for e in engines), strict=True):
        assert found.gradient.dtype == found.loss.dtype == torch.float32
        change = (found.gradient - exact.gradient).norm() / exact.gradient.norm()
        assert 1e-5 < change < 2 * BFLOAT16_ERROR


def trained(compiled: bool, batch_size: int, device: str = "cpu") -> Theta:
    network, theta = tiny_network("mlp")
    return train(
        {key: value.to(device) for key, value in theta.items()},
        network,
        random_images(7, stream="synthetic").to(device),
        SEVEN.to(device),
        epochs=3,
        batch_size=batch_size,
        learning_rate=0.1,
        momentum=0.0,
        weight_decay=0.0,
        generator=generator(0, "training"),
        compiled=compiled,
        recorded=compiled,
    )


@pytest.mark.parametrize("batch_size", [4, 256])
@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_compiled_training_equals_the_eager_one_and_is_compiled_once(
    backend: str, batch_size: int
) -> None:
    """Batches of four and three, or of all seven."""
    found = trained(True, batch_size)
    assert graphs() == 1
    for key, value in trained(False, batch_size).items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-13)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", COMPILED_NETWORKS)
def test_on_cuda_the_compiled_gradient_equals_the_eager_one(name: str, precision: str) -> None:
    autocast = PRECISIONS[precision]
    # In bfloat16 the two round differently: without kinks, at which that is another gradient.
    network, theta = tiny_network(name, activation="relu" if autocast is None else "silu")
    dtype = torch.float64 if autocast is None else torch.float32
    for step, number in enumerate((7, 2, 7, 7)):
        at = {key: (1 + step / 10) * value.to("cuda", dtype) for key, value in theta.items()}
        images = random_images(number, stream=f"batch {step}").to("cuda", dtype)
        arguments = (at, network, images, SEVEN[:number].cuda(), 3)
        found = constant_loss_gradient(*arguments, compiled=True, autocast=autocast)
        expected = constant_loss_gradient(*arguments, autocast=autocast)
        assert distance_between(found, expected) < (1e-10 if autocast is None else BFLOAT16_ERROR)


@pytest.mark.cuda
@pytest.mark.parametrize("form", FORMS)
def test_on_cuda_the_compiled_step_equals_the_eager_one(form: str | None) -> None:
    for step in range(4):
        found = matched(form, Engine(True, 5), device="cuda", step=step)
        wanted_of_classes = matched(form, Engine(), device="cuda", step=step)
        for ours, expected in zip(found, wanted_of_classes, strict=True):
            for got, wanted in zip(ours, expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.cuda
@pytest.mark.parametrize("batch_size", [4, 256])
def test_on_cuda_compiled_training_equals_the_eager_one(batch_size: int) -> None:
    expected = trained(False, batch_size, "cuda")
    for key, value in trained(True, batch_size, "cuda").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-10, atol=1e-13)
