"""The one SGD against torch.optim on a module, and accuracy against counting."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from condensation.augmentation import crop_scale_rotate
from condensation.networks import NETWORKS
from condensation.randomness import generator
from condensation.training import (
    SCHEDULES,
    accuracy,
    constant,
    linear_decay,
    tenth_after_half,
    train,
    warm_up_and_decay,
)
from conftest import random_images, tiny_network

LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 2])
SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.01,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_an_ordinary_training_loop(name: str) -> None:
    network, theta = tiny_network(name)
    images = random_images(7, stream="images")
    before = {key: value.clone() for key, value in theta.items()}
    trained = train(
        theta, network, images, LABELS, batch_size=3, generator=generator(0),
        schedule=tenth_after_half, **SETTINGS,
    )  # fmt: skip

    module = copy.deepcopy(network.module).to_empty(device="cpu").double()
    module.load_state_dict(theta)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    draw = generator(0)
    for epoch in range(4):
        optimiser.param_groups[0]["lr"] = 0.1 if epoch < 2 else 0.01
        for chosen in torch.randperm(7, generator=draw).split(3):
            optimiser.zero_grad()
            F.cross_entropy(module(images[chosen]), LABELS[chosen]).backward()
            optimiser.step()
    for key, value in module.named_parameters():
        torch.testing.assert_close(trained[key], value.detach(), rtol=1e-9, atol=1e-12)
        assert torch.equal(theta[key], before[key]), "the parameters given were changed"


@pytest.mark.parametrize("name", NETWORKS)
def test_in_a_lower_precision_it_is_autocast_and_the_parameters_are_not(name: str) -> None:
    network, theta = tiny_network(name)
    theta = {key: value.float() for key, value in theta.items()}
    images = random_images(7, stream="images").float()
    few: dict[str, Any] = {
        **{"epochs": 2, "batch_size": 7, "learning_rate": 0.1},
        **{"momentum": 0.0, "weight_decay": 0.0},
    }
    exact, lower = (
        train(theta, network, images, LABELS, generator=generator(0), autocast=dtype, **few)
        for dtype in (None, torch.bfloat16)
    )

    module = copy.deepcopy(network.module).to_empty(device="cpu")
    module.load_state_dict(theta)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    draw = generator(0)
    for _ in range(2):
        chosen = torch.randperm(7, generator=draw)
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(images[chosen])
        F.cross_entropy(logits.float(), LABELS[chosen]).backward()
        optimiser.step()

    def moved(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([(parameters[key] - theta[key]).flatten() for key in theta])

    expected = moved({key: value.detach() for key, value in module.named_parameters()})
    assert all(value.dtype == torch.float32 for value in lower.values())
    assert (moved(lower) - expected).norm() < 0.02 * expected.norm()
    assert not torch.equal(moved(lower), moved(exact))
    assert (moved(lower) - moved(exact)).norm() < 0.1 * moved(exact).norm()


def test_augmentation_is_drawn_anew_in_each_epoch() -> None:
    network, theta = tiny_network("mlp")
    images = random_images(7, stream="images")
    draws = []

    def draw(num_images: int, size: tuple[int, int], stream: torch.Generator):  # type: ignore[no-untyped-def]
        draws.append(crop_scale_rotate(num_images, size, stream))
        return draws[-1]

    steps = []
    train(
        theta, network, images, LABELS, batch_size=7, generator=generator(0), augmentation=draw,
        on_step=lambda: steps.append(1), **SETTINGS,
    )  # fmt: skip
    assert len(draws) == len(steps) == 4
    assert not torch.equal(draws[0].scale, draws[1].scale)


def test_schedules() -> None:
    assert [constant(x) for x in (0, 0.5, 0.99)] == [1, 1, 1]
    assert [tenth_after_half(x) for x in (0, 0.499, 0.5, 0.99)] == [1, 1, 0.1, 0.1]
    assert [warm_up_and_decay(x) for x in (0, 0.125, 0.25)] == [0, 0.5, 1]
    assert warm_up_and_decay(0.625) == pytest.approx(0.5)
    assert [linear_decay(x) for x in (0, 0.25, 0.5)] == [1, 0.75, 0.5]
    assert all(0 <= s(x / 100) <= 1 for s in SCHEDULES.values() for x in range(100))


def test_accuracy_is_the_percentage_of_right_answers() -> None:
    network, theta = tiny_network("convnet")
    images = random_images(130, stream="images")  # three blocks, the last one smaller
    answers = network(theta, images).argmax(1)
    labels = answers.clone()
    labels[:13] = (labels[:13] + 1) % 3
    assert accuracy(theta, network, images, labels) == pytest.approx(90)
