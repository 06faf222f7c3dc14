"""The one SGD against torch.optim on a module, and accuracy against counting."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from condensation import fused, kernels, stacked
from condensation.augmentation import crop_scale_rotate
from condensation.layers import AveragePool
from condensation.networks import NETWORKS, Network, build_network, init_theta
from condensation.normalisation import batch_norm
from condensation.randomness import generator
from condensation.stacked import goes_in_parts
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


@pytest.mark.parametrize(
    "name, options", [*((name, {}) for name in NETWORKS), ("convnet", {"norm": "batch"})], ids=str
)
def test_in_a_lower_precision_it_is_autocast_and_the_parameters_are_not(
    name: str, options: dict[str, Any]
) -> None:
    network, theta = tiny_network(name, **options)
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


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_in_parts_it_is_the_same_whatever_the_number_of_threads(
    autocast: torch.dtype | None, built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ConvNet; 7 images are parts of 3, 3 and 1. By kernels, products are in the lower type."""
    monkeypatch.setattr(stacked, "PART", 3)
    monkeypatch.setattr(fused, "FEWEST_TILES", 1)
    called: set[tuple[str, bool]] = set()
    call = kernels.call

    def watched(name: str, *arguments: torch.Tensor | float, sizes: tuple[int, ...]) -> None:
        dtypes = {each.dtype for each in arguments if isinstance(each, torch.Tensor)}
        called.add((name, torch.bfloat16 in dtypes))
        call(name, *arguments, sizes=sizes)

    monkeypatch.setattr(kernels, "call", watched)
    network = build_network("convnet", (1, 16, 16), 3, {"width": 32})
    theta = init_theta(network, generator(0, "theta"), "cpu")
    images = torch.randn(7, 1, 16, 16, generator=generator(1))

    def trained(threads: int, dtype: torch.dtype = torch.float32, **how: Any) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        start = {key: value.to(dtype) for key, value in theta.items()}
        end = train(
            start, network, images.to(dtype), LABELS, generator=generator(0), batch_size=7,
            autocast=autocast, **SETTINGS, **how,
        )  # fmt: skip
        return [*end.values()]

    before = torch.get_num_threads()
    try:
        assert not built or kernels.build() == ""
        one, two, eight = (trained(threads, in_parts=True) for threads in (1, 2, 8))
        by_kernels = set(called)
        whole, parts = (trained(1, torch.float64, in_parts=each) for each in (False, True))
    finally:
        kernels.discard()
        torch.set_num_threads(before)
    for first, second, third in zip(one, two, eight, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third)
    for ours, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    lower = autocast is not None
    assert built == ({("block_forward", lower), ("block_backward", lower)} <= by_kernels)


@pytest.mark.parametrize(
    ("name", "options"), [("mlp", {}), ("lenet", {}), ("convnet", {"norm": "batch"})], ids=str
)
def test_what_has_no_fused_blocks_or_batch_norms_does_not_go_in_parts(
    name: str, options: dict[str, Any]
) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    convnet, _ = tiny_network("convnet")
    assert goes_in_parts(convnet, cpu) and not goes_in_parts(convnet, cuda)
    block = nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(2, 2), nn.ReLU(), AveragePool()
    both = Network(nn.Sequential(*block, batch_norm((2, 8, 8)), nn.Flatten(), nn.Linear(128, 3)))
    assert both.batch_norms and isinstance(both.fused, fused.FusedSequential)
    assert not goes_in_parts(both, cpu)
    assert not goes_in_parts(tiny_network(name, **options)[0], cpu)


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
