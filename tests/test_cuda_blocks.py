"""The blocks on CUDA, against PyTorch's operators; without CUDA by Triton's interpreter."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from condensation import fused
from condensation.derivatives import classification_loss, constant_loss_gradient
from condensation.networks import build_network, init_theta
from condensation.randomness import generator

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytest.importorskip("triton")

SHAPES = [
    # images, channels, height, width, filters, padding: by the first kernel and by the convolution
    (2, 1, 28, 28, 16, 3),
    (2, 3, 16, 16, 8, 1),
    (3, 1, 12, 8, 6, 2),  # neither powers of two nor many
    (2, 8, 8, 8, 16, 1),
    (2, 5, 8, 6, 5, 1),
    (3, 4, 2, 2, 4, 1),  # one place
    (1, 1, 64, 64, 4, 1),  # as many as fit
]


@pytest.fixture(scope="module")
def blocks() -> Iterator[Any]:
    """The module, in use."""
    assert fused.load_cuda_blocks(DEVICE) == ""
    yield fused.cuda_blocks()
    fused.discard_cuda_blocks()


@pytest.fixture(autouse=True)
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the interpreter is given what the device would be."""
    monkeypatch.setattr(fused, "on_cuda", lambda device: True)


def plain(
    padding: int, images: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    convolved = F.conv2d(images, weight, bias, padding=padding)
    return F.avg_pool2d(F.relu(F.group_norm(convolved, len(weight), scale, shift)), 2)


@pytest.mark.parametrize("of_images", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_and_its_slopes_are_those_of_the_operators(
    shape: tuple[int, int, int, int, int, int], of_images: bool, blocks: Any
) -> None:
    number, channels, height, width, filters, padding = shape
    stream = generator(0, "block")

    def draw(*size: int) -> Tensor:
        values = torch.randn(size, generator=stream, dtype=torch.float64).to(DEVICE)
        return values.requires_grad_()

    images = draw(number, channels, height, width).requires_grad_(of_images)
    parameters = (draw(filters, channels, 3, 3), *(draw(filters) for _ in range(3)))
    found = blocks.block(images, *parameters, 1e-5, padding, None)
    expected = plain(padding, images, *parameters)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    slope = torch.randn(expected.shape, generator=stream, dtype=torch.float64).to(DEVICE)
    inputs = [*parameters, *([images] if of_images else [])]
    for got, wanted in zip(
        *(torch.autograd.grad(each, inputs, slope) for each in (found, expected)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("width", [4, 8])
def test_the_networks_gradient_goes_by_them(
    width: int, monkeypatch: pytest.MonkeyPatch, blocks: Any
) -> None:
    calls: list[torch.Size] = []
    block = blocks.block

    def watched(images: Tensor, *others: object) -> Tensor:
        calls.append(images.shape)
        result: Tensor = block(images, *others)
        return result

    monkeypatch.setattr(blocks, "block", watched)
    network = build_network("convnet", (1, 16, 16), 10, {"width": width})
    theta = init_theta(network, generator(0, "theta"), DEVICE)
    images = torch.randn(5, 1, 16, 16, generator=generator(1)).to(DEVICE)
    labels = torch.arange(5, device=DEVICE)

    def flat(dtype: torch.dtype, autocast: torch.dtype | None) -> Tensor:
        at = {key: value.to(dtype) for key, value in theta.items()}
        found = constant_loss_gradient(
            at, network, images.to(dtype), labels, 3, compiled=True, autocast=autocast
        )
        assert {value.dtype for value in found.values()} == {dtype}
        return torch.cat([value.double().flatten() for value in found.values()])

    leaves = {key: value.double().requires_grad_() for key, value in theta.items()}
    loss = classification_loss(leaves, network, images.double(), labels)
    slopes = torch.autograd.grad(loss, [*leaves.values()])
    exact = torch.cat([slope.flatten() for slope in slopes])
    torch.testing.assert_close(flat(torch.float64, None), exact, rtol=1e-9, atol=1e-12)
    assert len(calls) == 2 * 3  # of two batches of images, each block
    # What is not float32 is not lowered, as elsewhere under `torch.autocast`.
    torch.testing.assert_close(flat(torch.float64, torch.bfloat16), exact, rtol=1e-9, atol=1e-12)
    rounded = flat(torch.float32, torch.bfloat16)
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 0.1


def test_they_give_the_same_bytes_each_time(blocks: Any) -> None:
    network = build_network("convnet", (1, 8, 8), 10, {"width": 8})
    theta = init_theta(network, generator(0, "theta"), DEVICE)
    images = torch.randn(6, 1, 8, 8, generator=generator(1)).to(DEVICE)
    labels = torch.zeros(6, dtype=torch.int64, device=DEVICE)
    first, second = (
        constant_loss_gradient(theta, network, images, labels, 6, compiled=True) for _ in range(2)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_is_wrong_or_fails_is_not_used(monkeypatch: pytest.MonkeyPatch, blocks: Any) -> None:
    forward = blocks._Pool.forward
    for broken, said in (
        (lambda *args: forward(*args) * 1.001, "their results differ by"),
        (lambda *args: 1 / 0, "Triton failed: division by zero"),
    ):
        monkeypatch.setattr(blocks._Pool, "forward", staticmethod(broken))
        fused.discard_cuda_blocks()
        assert fused.load_cuda_blocks(DEVICE).startswith(said)
        assert fused.cuda_blocks() is None
        monkeypatch.setattr(blocks._Pool, "forward", staticmethod(forward))
    assert fused.load_cuda_blocks(DEVICE) == "" and fused.cuda_blocks() is blocks


PASSES = [
    *(("_First", part) for part in (None, 1, 3, 4)),
    *(("_Pool", part) for part in (None, 0, 2, 3)),
]
"""Of each kind the result (None), and what has a slope that is not 0, by its place."""


@pytest.mark.parametrize("factor", [1.01, float("nan")])
@pytest.mark.parametrize("kind, part", PASSES)
def test_every_pass_that_is_wrong_is_noticed(
    kind: str, part: int | None, factor: float, monkeypatch: pytest.MonkeyPatch, blocks: Any
) -> None:
    of_kind, name = getattr(blocks, kind), "forward" if part is None else "backward"
    right = getattr(of_kind, name)

    def wrong(*arguments: Any) -> Any:
        found = right(*arguments)
        if part is None:
            return found * factor
        return tuple(each * factor if i == part else each for i, each in enumerate(found))

    monkeypatch.setattr(of_kind, name, staticmethod(wrong))
    monkeypatch.setattr(fused, "_loaded", [])
    assert fused.load_cuda_blocks(DEVICE).startswith("their results differ by")
    assert fused.cuda_blocks() is None


def test_what_does_not_fit_goes_by_the_operators(blocks: Any) -> None:
    convolution = torch.nn.Conv2d(1, 4, 3, padding=1)
    assert fused.fits(torch.empty(1, 1, 64, 64), convolution)
    assert not fused.fits(torch.empty(1, 1, 66, 64), convolution)
    assert not fused.fits(torch.empty(1, 1, 9, 8), convolution)
