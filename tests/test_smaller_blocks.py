"""Out of memory: smaller blocks, the same result, one line."""

import pytest
import torch

from condensation import derivatives, memory
from condensation.derivatives import classification_loss, constant_loss_gradient
from condensation.networks import NetworkFunction, Theta
from conftest import random_images, tiny_network


@pytest.fixture(autouse=True)
def nothing_found_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_largest", {})


def test_blocks_are_halved_until_they_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, theta = tiny_network("mlp")
    images, labels = random_images(9, stream="batch"), torch.zeros(9, dtype=torch.int64)
    expected = constant_loss_gradient(theta, network, images, labels, 9)
    sizes = []

    def full(
        theta: Theta, network: NetworkFunction, images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return classification_loss(theta, network, images, labels)

    monkeypatch.setattr(derivatives, "classification_loss", full)
    gradient = constant_loss_gradient(theta, network, images, labels, 9)
    assert sizes == [9, 4, 2, 2, 2, 2, 1]
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-10, atol=1e-13)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"out of memory: from now on {n} images at a time" for n in (4, 2)]
    constant_loss_gradient(theta, network, images, labels, 9)
    assert sizes[7:] == [2, 2, 2, 2, 1] and not capsys.readouterr().err


@pytest.mark.parametrize("message", ["CUDA out of memory", "mat1 and mat2 do not fit"])
def test_what_no_smaller_block_helps_is_an_error(message: str) -> None:
    def fail(size: int) -> int:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=message):
        memory.with_less_memory(fail, 4 if "fit" in message else 1, "cpu")
