"""A function of tensors as one CUDA graph; elsewhere it is the function."""

from typing import Any

import pytest
import torch
from torch import Tensor

from condensation import fused, recording
from condensation.augmentation import AUGMENTATIONS
from condensation.class_batches import LazyBatches
from condensation.curvature import CURVATURE_FORMS
from condensation.datasets import Dataset
from condensation.distances import DISTANCES
from condensation.draws import Draws
from condensation.matching import Curvature, Engine, make_matching_step
from condensation.randomness import generator
from condensation.recording import Recorded, brought
from condensation.siamese_augmentation import SiameseAugmentation, siamese
from conftest import IMAGE_SHAPE, NUM_CLASSES, tiny_network


def combined(by_name: dict[str, Tensor], others: list[Tensor | None]) -> dict[str, Tensor]:
    first, nothing = others
    assert first is not None and nothing is None
    return {name: value * 2 + first for name, value in by_name.items()}


def test_elsewhere_it_is_the_function_itself() -> None:
    calls = []

    def function(value: Tensor) -> Tensor:
        calls.append(value)
        return value + 1

    recorded, value = Recorded(function), torch.ones(3)
    for number in (1, 2):
        assert torch.equal(recorded(value), value + 1)
        assert len(calls) == number and calls[-1] is value


@pytest.mark.cuda
def test_each_run_takes_what_it_is_given_and_gives_memory_of_its_own() -> None:
    calls = []

    def function(by_name: dict[str, Tensor], others: list[Tensor | None]) -> dict[str, Tensor]:
        calls.append(1)
        return combined(by_name, others)

    recorded = Recorded(function)
    results, expected = [], []
    for step in range(4):
        size = 2 if step == 2 else 3  # another shape is another graph
        by_name = {name: torch.full((size,), step + 1.0).cuda() for name in "ab"}
        others = [torch.full((size,), 0.5), None]  # the first on the host
        results.append(recorded(by_name, others))
        expected.append(combined(by_name, [torch.full((size,), 0.5).cuda(), None]))
    for found, wanted in zip(results, expected, strict=True):
        assert all(torch.equal(found[name], wanted[name]) for name in "ab")
    assert len(calls) == 2 * 3


@pytest.mark.cuda
def test_what_is_no_tensor_is_not_recorded() -> None:
    calls = []

    def function(value: Tensor, number: float) -> Tensor:
        calls.append(1)
        return value + number

    recorded, value = Recorded(function), torch.ones(3).cuda()
    assert torch.equal(recorded(value, 1.0), value + 1)
    assert torch.equal(recorded(value, 2.0), value + 2)
    assert len(calls) == 2


def test_batches_and_draws_are_made_of_tensors_for_it() -> None:
    """So that a graph can be given the next ones."""
    images = torch.arange(6.0)
    batches = LazyBatches(images.__getitem__, [torch.tensor([0, 2]), torch.tensor([5])])
    draw = siamese(1, (8, 8), generator(0))
    leaves, structure = torch.utils._pytree.tree_flatten([batches, draw])
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    others = [leaf + 1 if leaf.dtype == torch.int64 and leaf.ndim == 1 else leaf for leaf in leaves]
    again, same_draw = torch.utils._pytree.tree_unflatten(others, structure)
    assert isinstance(same_draw, SiameseAugmentation) and torch.equal(same_draw.cut, draw.cut)
    assert again[0].tolist() == [1, 3]


def test_what_is_on_the_host_is_copied_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy for each type of number, whatever the number of draws; views of it are given."""
    copied: list[Tensor] = []

    def copy(tensor: Tensor, device: torch.device) -> Tensor:
        copied.append(tensor.clone())
        return copied[-1]

    monkeypatch.setattr(recording, "to_device", copy)
    draws = [siamese(1, (8, 8), generator(number)) for number in range(5)]
    empty, scalar = torch.zeros(0, 3), torch.tensor(0.5)
    leaves: list[Tensor] = [*torch.utils._pytree.tree_flatten(draws)[0], empty, scalar]
    types = {leaf.dtype for leaf in leaves}
    assert len(leaves) > 20 and len(types) < 4
    found = brought(leaves, torch.device("cpu"))
    assert len(copied) == len(types)
    assert [*map(torch.Tensor.tolist, found)] == [*map(torch.Tensor.tolist, leaves)]
    assert [leaf.shape for leaf in found] == [leaf.shape for leaf in leaves]
    storages = {leaf.untyped_storage().data_ptr() for leaf in copied}
    assert {leaf.untyped_storage().data_ptr() for leaf in found} == storages


def test_what_is_elsewhere_than_on_the_host_stays_there() -> None:
    meta = torch.device("meta")
    mixed = [torch.zeros(2, device=meta), torch.zeros(3), torch.zeros(2, 2)]
    found = brought(mixed, meta)
    assert found[0] is mixed[0] and {leaf.device for leaf in found} == {meta}
    assert [leaf.shape for leaf in found] == [leaf.shape for leaf in mixed]


@pytest.mark.cuda
@pytest.mark.parametrize("form", [None, "lookahead"])
def test_a_recorded_image_step_equals_the_eager_one_each_time(
    form: str | None, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With new parameters, images, batches, draws and another weight; kernels are in use."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.compiler.reset()
    cuda = torch.device("cuda")
    network, _ = tiny_network("convnet", width=8)
    assert fused.load_cuda_blocks(cuda) == ""
    draws = Draws(tiny_dataset, range(2), AUGMENTATIONS["dsa"], cuda)
    weight = torch.zeros((), device=cuda)
    curvature = Curvature(CURVATURE_FORMS[form], weight, 4) if form else None
    recorded, eager = (
        make_matching_step(
            [network] * 2, DISTANCES["squared_euclidean"], curvature, [2] * NUM_CLASSES, 0, engine
        )
        for engine in (Engine(True, draws.most_real(6)), Engine())
    )
    classes, stream = range(NUM_CLASSES), generator(0, "images")
    for number in range(4):
        weight.fill_(number / 4)
        images = torch.randn(2, 2 * NUM_CLASSES, *IMAGE_SHAPE, generator=stream).to(cuda)
        following = ("real", number + 1)
        given: tuple[Any, ...] = (
            images,
            [draws.real(k, classes, 6, "real", number, following=following) for k in range(2)],
            draws.thetas(network, number),
            [[], []],
            [draws.siamese(k, classes, number) for k in range(2)],
        )
        for found, expected in zip(recorded(*given), eager(*given), strict=True):
            assert (found - expected).norm() <= 1e-3 * expected.norm()
    fused.discard_cuda_blocks()
