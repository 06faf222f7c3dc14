"""Networks side by side against each by itself, and the choice of how many."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from condensation import batches
from condensation.augmentation import AUGMENTATIONS
from condensation.checkpoints import Checkpoint
from condensation.networks import NETWORKS, Theta, build_network, init_theta
from condensation.randomness import generator
from condensation.sgd import SomeAtOnce
from condensation.stacked import StackedGradient, group_sizes, multiply_adds
from condensation.states import State
from condensation.training import tenth_after_half, train, train_together
from conftest import IMAGE_SHAPE, random_images, tiny_network

LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 2])
SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "schedule": tenth_after_half,
}
SETS = [random_images(7, stream=f"images {k}") for k in range(3)]


def start(name: str, options: dict[str, Any]) -> tuple[StackedGradient, list[Theta], Any]:
    network, theta = tiny_network(name, **options)
    thetas = [{key: (1 + k / 10) * value for key, value in theta.items()} for k in range(3)]
    return StackedGradient(network), thetas, network


def together(
    gradient: StackedGradient, thetas: list[Theta], streams: int = 3, **settings: Any
) -> list[Theta]:
    """Train with a generator for each."""
    generators = [generator(0, k) for k in range(streams)]
    return train_together(thetas, gradient, SETS, [LABELS] * 3, generators, **SETTINGS | settings)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("size", [3, 7, 50])
def test_side_by_side_each_is_trained_as_if_alone(augmentation: str, size: int) -> None:
    """Also where the last step of an epoch has fewer images, or some are taken at once; float64."""
    gradient, thetas, network = start("mlp", {})
    settings: dict[str, Any] = {"batch_size": size, "augmentation": AUGMENTATIONS[augmentation]}
    one_by_one = together(gradient, thetas, **settings)
    some_at_once = together(gradient, thetas, recorded=True, **settings)
    for k, pair in enumerate(zip(one_by_one, some_at_once, strict=True)):
        alone = train(
            thetas[k], network, SETS[k], LABELS, generator=generator(0, k), **SETTINGS | settings
        )
        for key, value in alone.items():
            for trained in pair:
                torch.testing.assert_close(trained[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name, options",
    [*((name, {}) for name in NETWORKS if name != "mlp"), ("convnet", {"norm": "batch"})],
    ids=str,
)
def test_every_network_can_be_trained_side_by_side(name: str, options: dict[str, str]) -> None:
    gradient, thetas, network = start(name, options)
    trained = together(gradient, thetas, batch_size=7, epochs=1)
    for k, theta in enumerate(thetas):
        settings = SETTINGS | {"epochs": 1}
        alone = train(
            theta, network, SETS[k], LABELS, batch_size=7, generator=generator(0, k), **settings
        )
        for key, value in alone.items():
            torch.testing.assert_close(trained[k][key], value, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_recorded_operators_give_the_same_bits(name: str) -> None:
    network = build_network(name, (1, 28, 28), 3)
    thetas = [init_theta(network, generator(0, k), "cpu") for k in range(3)]
    stacked = {key: torch.stack([theta[key] for theta in thetas]) for key in thetas[0]}
    images, labels = torch.stack(SETS).float(), LABELS.expand(3, -1)
    gradient = StackedGradient(network)
    expected = gradient(stacked, images, labels)
    gradient.record([(3, 7)], (1, 28, 28), torch.device("cpu"))
    assert gradient._recorded.keys() == {images.shape}
    for key, value in gradient(stacked, images, labels).items():
        assert torch.equal(value, expected[key]), key


def test_one_that_diverges_leaves_the_others_alone() -> None:
    gradient, thetas, _ = start("mlp", {})
    expected = together(gradient, thetas, batch_size=7)
    thetas[1] = {key: value * float("nan") for key, value in thetas[1].items()}
    trained = together(gradient, thetas, batch_size=7)
    assert all(value.isnan().all() for value in trained[1].values())
    for k in (0, 2):
        assert all(torch.equal(trained[k][key], value) for key, value in expected[k].items())


class Memory(Checkpoint):
    """Keeps every state, and goes on from one of them."""

    def __init__(self, state: State | None = None) -> None:
        """Go on from a state, or begin."""
        self.states: list[State] = []
        self._state = state

    def load(self) -> State | None:
        return self._state

    def offer(self, make_state: Callable[[], State]) -> None:
        state = make_state()
        tensors = {name: value.clone() for name, value in state.tensors.items()}
        self.states.append(State(tensors, state.record))


@pytest.mark.parametrize("size, epochs", [(3, 3), (7, 5)])
@pytest.mark.parametrize("ahead", [1, 20])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_from_every_step_it_goes_on_to_the_same_bits(
    size: int, epochs: int, ahead: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a step is among those that were made, or are taken, together."""
    monkeypatch.setattr(batches, "AHEAD", {"cpu": ahead * math.prod(IMAGE_SHAPE)})
    monkeypatch.setattr(SomeAtOnce, "at_once", at_once)
    gradient, thetas, _ = start("mlp", {})
    memory, steps = Memory(), []
    settings: dict[str, Any] = {
        "batch_size": size,
        "epochs": epochs,
        "augmentation": AUGMENTATIONS["crop_scale_rotate"],
    }
    settings["recorded"] = at_once > 1
    whole = together(
        gradient, thetas, checkpoint=memory, on_step=lambda: steps.append(1), **settings
    )
    counts = [state.record["steps"] for state in memory.states]
    assert len(steps) == 3 * counts[-1] == 3 * epochs * -(-7 // size)
    assert (len(counts) < counts[-1]) == (at_once > 1)
    for number, state in enumerate(memory.states, 1):
        again = Memory(state)
        resumed = together(gradient, thetas, checkpoint=again, **settings)
        assert [state.record["steps"] for state in again.states] == counts[number:]
        for expected, theta in zip(whole, resumed, strict=True):
            assert all(torch.equal(theta[key], value) for key, value in expected.items())


def test_what_is_made_ahead_changes_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen() -> list[Tensor]:
        made = batches.Batches(
            SETS[:2], [LABELS] * 2, [generator(0, k) for k in range(2)],
            epochs=5, batch_size=7, augmentation=AUGMENTATIONS["dsa"],
        )  # fmt: skip
        return [tensor for step in made.steps() for tensor in step]

    expected = seen()
    monkeypatch.setattr(batches, "AHEAD", {"cpu": 1})
    for one, other in zip(seen(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_multiply_adds_are_those_of_convolutions_and_products() -> None:
    mnist = (1, 28, 28)
    assert multiply_adds(build_network("mlp", mnist, 10), mnist) == 784 * 128 + 128 * 128 + 1280
    expected = 25 * 6 * 784 + 150 * 16 * 100 + 400 * 120 + 120 * 84 + 840
    assert multiply_adds(build_network("lenet", mnist, 10), mnist) == expected


@pytest.mark.parametrize(
    "name, size, device, expected",
    [
        ("mlp", 10, "cpu", [6, 6]),
        ("lenet", 10, "cpu", [6, 6]),
        ("lenet", 100, "cpu", [1] * 12),
        ("convnet", 10, "cpu", [1] * 12),
        ("lenet", 100, "cuda", [12]),
        ("mlp", 256, "cuda", [6, 6]),
        ("convnet", 10, "cuda", [12]),
        ("convnet", 100, "cuda", [1] * 12),
        ("mlp", 9999, "cuda", [1] * 12),
    ],
)
def test_how_many_go_side_by_side(name: str, size: int, device: str, expected: list[int]) -> None:
    network = build_network(name, (1, 28, 28), 10)
    assert group_sizes(12, network, (1, 28, 28), size, device) == expected
    for number in range(1, 30):
        assert sum(group_sizes(number, network, (1, 28, 28), size, device)) == number


@pytest.mark.cuda
@pytest.mark.parametrize("name", NETWORKS)
def test_on_cuda_side_by_side_equals_each_by_itself(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network, _ = tiny_network(name)
    thetas = [init_theta(network, generator(0, k), "cuda") for k in range(3)]
    images = [image_set.float().cuda() for image_set in SETS]
    labels = [LABELS.cuda()] * 3
    gradient = StackedGradient(network)
    gradient.record([(3, 7)], (1, *images[0].shape[-2:]), torch.device("cuda"))
    settings = SETTINGS | {"batch_size": 7, "augmentation": AUGMENTATIONS["crop_scale_rotate"]}
    streams = [generator(0, k) for k in range(3)]
    trained = train_together(thetas, gradient, images, labels, streams, **settings)
    for k, theta in enumerate(thetas):
        alone = train(theta, network, images[k], labels[k], generator=generator(0, k), **settings)
        for key, value in alone.items():
            torch.testing.assert_close(trained[k][key], value, rtol=1e-3, atol=1e-4)
