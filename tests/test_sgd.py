"""SGD by steps that are taken together against PyTorch's, a step at a time."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from condensation import fused, stacked
from condensation.augmentation import AUGMENTATIONS
from condensation.derivatives import constant_loss_gradient
from condensation.networks import NETWORKS, Network, Theta, build_network, init_theta
from condensation.randomness import generator
from condensation.sgd import (
    RECORDED_FROM,
    STEPS_AT_ONCE,
    describe_recording,
    pays_to_record,
    recorded_steps,
)
from condensation.stacked import (
    Gradient,
    StackedGradient,
    arrange,
    compiled_gradient_of_one,
    one_gradient,
)
from condensation.training import tenth_after_half, train, train_together
from conftest import IMAGE_SHAPE, NUM_CLASSES, random_images, tiny_network

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 2])
IMAGES = random_images(7, stream="images")
MOVED = [(0.0, 0.0), (0.9, 0.0), (0.0, 0.01), (0.9, 0.01)]


def trained(name: str, recorded: bool, **changes: Any) -> Theta:
    network, theta = tiny_network(name)
    settings = {
        "epochs": 7,
        "batch_size": 3,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "schedule": tenth_after_half,
        **changes,
    }
    return train(
        theta, network, IMAGES, LABELS, generator=generator(0), recorded=recorded, **settings
    )


@pytest.mark.parametrize("momentum, weight_decay", MOVED)
@pytest.mark.parametrize("batch_size", [3, 7, 256])
def test_steps_together_come_to_what_pytorch_s_come_to(
    batch_size: int, momentum: float, weight_decay: float
) -> None:
    """In float64; of batches of 3, 3 and 1 images, and of all seven."""
    changes = {"batch_size": batch_size, "momentum": momentum, "weight_decay": weight_decay}
    expected = trained("mlp", False, **changes)
    for name, value in trained("mlp", True, **changes).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_trained_by_steps_together(name: str) -> None:
    expected = trained(name, False, epochs=2)
    for key, value in trained(name, True, epochs=2).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-7, atol=1e-10)


class Counted(TorchDispatchMode):
    """Notes the operators."""

    def __init__(self) -> None:
        """None yet."""
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator."""
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("momentum, weight_decay", MOVED)
def test_a_recorded_step_moves_all_parameters_at_once(
    momentum: float, weight_decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each by itself would be, and what it is given stays as it is."""
    network, theta = tiny_network("convnet")
    theta = {name: value.float()[None] for name, value in theta.items()}
    images = torch.stack([random_images(7, stream=f"step {k}")[None].float() for k in range(3)])
    labels, rates = LABELS.expand(3, 1, -1), torch.tensor([0.3, 0.2, 0.1])
    velocity = {name: torch.ones_like(value) for name, value in theta.items() if momentum}

    def eager(at: Theta, network: Network, *batch: Any, compiled: bool, autocast: None) -> Theta:
        with torch.utils._python_dispatch._disable_current_modes():
            return constant_loss_gradient(at, network, *batch)

    expected, speed = theta, dict(velocity)
    for rate, seen, answers in zip(rates, images, labels, strict=True):
        slopes = one_gradient(network)(expected, seen, answers)
        for name, value in expected.items():
            slope = slopes[name] + weight_decay * value if weight_decay else slopes[name]
            if momentum:
                slope = speed[name] = slope + momentum * speed[name]
            expected = {**expected, name: value - rate * slope}
    before = {name: value.clone() for name, value in theta.items()}
    monkeypatch.setattr(stacked, "constant_loss_gradient", eager)
    steps = recorded_steps(compiled_gradient_of_one(network, 7), momentum, weight_decay)
    with Counted() as counted:
        found, moved = steps(theta, velocity, rates, images, labels)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
        assert torch.equal(theta[name], before[name])
    assert moved.keys() == velocity.keys()
    for name, value in moved.items():
        torch.testing.assert_close(value, speed[name], rtol=1e-6, atol=1e-7)
        assert (velocity[name] == 1).all()
    moving = [name for name in counted.names if "foreach" in name]
    assert len(theta) > 1
    assert len(moving) == (2 + (momentum > 0) + (weight_decay > 0)) * len(images)
    assert not {"aten::mul.Tensor", "aten::sub.Tensor", "aten::add.Tensor"} & {*counted.names}


def test_the_same_gradient_and_settings_share_their_recordings() -> None:
    network, _ = tiny_network("mlp")
    assert one_gradient(network) is one_gradient(network)
    gradient = compiled_gradient_of_one(network, 7)
    assert gradient is compiled_gradient_of_one(network, 7)
    assert recorded_steps(gradient, 0.9, 0.1) is recorded_steps(gradient, 0.9, 0.1)
    assert recorded_steps(gradient, 0.9, 0.1) is not recorded_steps(gradient, 0.0, 0.1)


@pytest.mark.parametrize(
    "setting, device, steps, expected",
    [
        ("auto", "cuda", RECORDED_FROM, True),
        ("on", "cuda", RECORDED_FROM, True),
        ("auto", "cuda", RECORDED_FROM - 1, False),
        ("off", "cuda", 9999, False),
        ("on", "cpu", 9999, False),
    ],
)
def test_when_steps_are_recorded(setting: str, device: str, steps: int, expected: bool) -> None:
    assert pays_to_record(setting, torch.device(device), steps) is expected


def test_what_is_shared_is_kept_no_longer_than_it_can_be() -> None:
    """Graphs have memory of their own: those of an earlier stage are given up."""

    def train_one(name: str) -> "weakref.ref[Network]":
        network, theta = tiny_network(name)
        sizes, gradient = arrange([7], network, IMAGE_SHAPE, CPU, epochs=1, batch_size=7)
        assert sizes == [1]
        train_together(
            [theta], gradient, [IMAGES], [LABELS], [generator(0)], recorded=True,
            epochs=2, batch_size=7, learning_rate=0.1, momentum=0.9, weight_decay=0.0,
        )  # fmt: skip
        return weakref.ref(network)

    first = train_one("lenet")
    gc.collect()
    assert first() is not None
    train_one("mlp")
    gc.collect()
    assert first() is None


@pytest.mark.parametrize("name", NETWORKS)
def test_what_moves_the_parameters_lies_as_they_do(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they are moved one by one."""
    network, theta = tiny_network(name)
    stacked_theta = {key: value[None] for key, value in theta.items()}
    strides = [value.stride() for value in stacked_theta.values()]
    seen: list[list[tuple[int, ...]]] = []
    add = torch._foreach_add

    def noting(slopes: Any, others: Any, **options: Any) -> Any:
        seen.extend([[value.stride() for value in slopes], [value.stride() for value in others]])
        return add(slopes, others, **options)

    monkeypatch.setattr(torch, "_foreach_add", noting)
    velocity = {key: torch.zeros_like(value) for key, value in stacked_theta.items()}
    steps = recorded_steps(one_gradient(network), 0.9, 0.01)
    images, labels = IMAGES[None, None].expand(2, -1, -1, -1, -1, -1), LABELS.expand(2, 1, -1)
    moved = steps(
        stacked_theta, velocity, torch.full((2,), 0.1, dtype=torch.float64), images, labels
    )
    assert len(seen) == 2 * 2 * 2
    for found in [*seen, *([value.stride() for value in part.values()] for part in moved)]:
        assert found == strides


@pytest.mark.parametrize("recorded", [False, True])
def test_a_line_says_so(recorded: bool) -> None:
    assert describe_recording(recorded) == ("; training 10 steps at a time" if recorded else "")


@pytest.mark.cuda
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "name, options", [*((name, {}) for name in NETWORKS), ("convnet", {"norm": "batch"})], ids=str
)
def test_on_cuda_recorded_training_equals_the_eager_one(
    name: str, options: dict[str, str], together: bool
) -> None:
    """Each alone and all side by side, by graphs that are used again; in float64."""
    compare_on_cuda(name, options, StackedGradient if together else one_gradient, torch.float64)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_on_cuda_recorded_training_by_traced_operators_equals_the_eager_one(name: str) -> None:
    def traced(network: Network) -> StackedGradient:
        gradient = StackedGradient(network)
        gradient.record([(3, 7)], IMAGE_SHAPE, torch.device("cuda"))
        return gradient

    compare_on_cuda(name, {}, traced, torch.float32)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["mlp", "lenet", "convnet"])
def test_on_cuda_recorded_training_in_bfloat16_equals_the_eager_one(name: str) -> None:
    compare_on_cuda(name, {}, partial(one_gradient, autocast=torch.bfloat16), torch.float32)


@pytest.mark.cuda
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_on_cuda_recorded_training_by_kernels_of_blocks_equals_the_eager_one(
    autocast: torch.dtype | None,
) -> None:
    assert fused.load_cuda_blocks(torch.device("cuda")) == ""
    gradient = partial(one_gradient, autocast=autocast)
    try:
        compare_on_cuda("convnet", {"activation": "relu"}, gradient, torch.float32)
    finally:
        fused.discard_cuda_blocks()


def compare_on_cuda(
    name: str, options: dict[str, str], make: Callable[[Network], Gradient], dtype: torch.dtype
) -> None:
    """Hold training by graphs to training step by step: three networks, some graphs twice."""
    network = build_network(name, IMAGE_SHAPE, NUM_CLASSES, options)
    gradient, labels = make(network), LABELS.cuda()
    groups = [[0, 1, 2]] if isinstance(gradient, StackedGradient) else [[0], [1], [2]]
    images = [random_images(7, stream=f"set {k}").to("cuda", dtype) for k in range(3)]
    thetas = [
        {
            key: value.to(dtype)
            for key, value in init_theta(network, generator(0, k), "cuda").items()
        }
        for k in range(3)
    ]

    def train_all(recorded: bool) -> list[Theta]:
        return [
            theta
            for group in groups
            for theta in train_together(
                [thetas[k] for k in group],
                gradient,
                [images[k] for k in group],
                [labels] * len(group),
                [generator(0, k) for k in group],
                recorded=recorded,
                epochs=2 * STEPS_AT_ONCE + 3,
                batch_size=7,
                learning_rate=0.01,
                momentum=0.9,
                weight_decay=0.01,
                schedule=tenth_after_half,
                augmentation=AUGMENTATIONS["crop_scale_rotate"],
            )
        ]

    exact = dtype == torch.float64
    for one, other in zip(train_all(True), train_all(False), strict=True):
        for key, value in other.items():
            relative, absolute = (1e-7, 1e-10) if exact else (1e-3, 1e-3)
            torch.testing.assert_close(one[key], value, rtol=relative, atol=absolute)
