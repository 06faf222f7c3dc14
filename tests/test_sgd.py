"""SGD by steps that are taken together against PyTorch's, a step at a time."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from condensation import stacked
from condensation.augmentation import AUGMENTATIONS
from condensation.derivatives import constant_loss_gradient
from condensation.networks import NETWORKS, Network, Theta, build_network, init_theta
from condensation.randomness import generator
from condensation.sgd import RECORDED_FROM, STEPS_AT_ONCE, pays_to_record, recorded_steps
from condensation.stacked import arrange, compiled_gradient_of_one, one_gradient
from condensation.training import tenth_after_half, train, train_together
from conftest import IMAGE_SHAPE, NUM_CLASSES, random_images, tiny_network

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
    """To the same bits as each by itself, and what it is given stays as it is."""
    network, theta = tiny_network("convnet")
    theta = {name: value.float()[None] for name, value in theta.items()}
    images = torch.stack([random_images(7, stream=f"step {k}")[None].float() for k in range(3)])
    labels, rates = LABELS.expand(3, 1, -1), torch.tensor([0.3, 0.2, 0.1])
    velocity = {name: torch.ones_like(value) for name, value in theta.items() if momentum}

    def eager(at: Theta, network: Network, *batch: Any, compiled: bool) -> Theta:
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


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{}, {"norm": "batch"}], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_on_cuda_recorded_training_equals_the_eager_one(name: str, options: dict[str, str]) -> None:
    """Alone and side by side, with another batch at each step, twice; in float64."""
    if options and name != "convnet":
        pytest.skip("one network with batch norms is enough")
    network = build_network(name, IMAGE_SHAPE, NUM_CLASSES, options)
    cuda = torch.device("cuda")
    thetas = [
        {key: value.double() for key, value in init_theta(network, generator(0, k), cuda).items()}
        for k in range(3)
    ]
    images = [random_images(7, stream=f"set {k}").cuda() for k in range(3)]
    settings: dict[str, Any] = {
        "epochs": STEPS_AT_ONCE + 3,
        "batch_size": 7,
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "schedule": tenth_after_half,
        "augmentation": AUGMENTATIONS["crop_scale_rotate"],
    }

    def together(recorded: bool) -> list[Theta]:
        sizes, gradient = arrange([7] * 3, network, IMAGE_SHAPE, cuda, epochs=1, batch_size=7)
        found: list[Theta] = []
        for size in sizes:
            part = slice(len(found), len(found) + size)
            found += train_together(
                thetas[part], gradient, images[part], [LABELS.cuda()] * size,
                [generator(0, k) for k in range(3)[part]], recorded=recorded, **settings,
            )  # fmt: skip
        return found

    for one, other in zip(together(True), together(False), strict=True):
        for key, value in other.items():
            torch.testing.assert_close(one[key], value, rtol=1e-7, atol=1e-10)
