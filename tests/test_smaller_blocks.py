"""Out of memory: smaller blocks, the same result, one line."""

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from condensation import derivatives, matching, memory, stacked_classes
from condensation.compiled_gradients import SumGradient, sum_gradient
from condensation.derivatives import classification_loss, constant_loss_gradient
from condensation.distances import DISTANCES, Distance
from condensation.matching import Engine, Matched, make_matching_step, match_classes
from condensation.networks import NetworkFunction, Theta
from condensation.recording import settled
from condensation.stacked_classes import ClassInputs, ClassSlopes, Transform
from condensation.workers import parallel_map
from conftest import NUM_CLASSES, random_images, tiny_network


def eager(module: torch.nn.Module, autocast: None) -> SumGradient:
    """Stand for the compiled gradient."""
    return sum_gradient(module, autocast)


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


@pytest.mark.parametrize("compiled", [False, True])
def test_classes_that_do_not_fit_together_are_matched_in_parts(
    compiled: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, theta = tiny_network("mlp")
    synthetic = [*random_images(NUM_CLASSES, 2, stream="synthetic")]
    real = [*random_images(NUM_CLASSES, 5, stream="real")]
    sizes: list[tuple[int, bool]] = []

    def matched() -> list[Matched]:
        return match_classes(
            theta,
            network,
            synthetic,
            real,
            0,
            DISTANCES["squared_euclidean"],
            None,
            [],
            [None] * NUM_CLASSES,
            Engine(compiled),
        )

    plain = stacked_classes.stacked_transform

    def making(as_graph: bool, most: int) -> Callable[..., Transform]:
        def make(
            module: torch.nn.Module, distance: Distance, form: None, names: tuple[str, ...]
        ) -> Transform:
            def full(theta: Theta, statistics: Theta, inputs: ClassInputs) -> ClassSlopes:
                sizes.append((len(inputs.images), as_graph))
                if len(inputs.images) > most:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                return plain(module, distance, form, names)(theta, statistics, inputs)

            return full

        return make

    def limit(most: int) -> None:
        monkeypatch.setattr(stacked_classes, "stacked_transform", making(False, most))
        monkeypatch.setattr(stacked_classes, "compiled_transform", making(True, most))

    monkeypatch.setattr(derivatives, "compiled_gradient", eager)
    limit(NUM_CLASSES)
    expected = matched()
    assert sizes == [(NUM_CLASSES, compiled)] and not capsys.readouterr().err
    limit(NUM_CLASSES - 1)
    for _ in range(2):
        sizes.clear()
        for found, wanted in zip(matched(), expected, strict=True):
            for ours, theirs in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
        assert sizes[-NUM_CLASSES:] == [(1, False)] * NUM_CLASSES
    assert len(sizes) == NUM_CLASSES
    said = capsys.readouterr().err.splitlines()
    assert said == ["out of memory: from now on 1 classes of synthetic images at a time"]


def test_fewer_classes_are_matched_side_by_side_where_they_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, theta = tiny_network("mlp")
    synthetic = random_images(1, NUM_CLASSES * 2, stream="synthetic")
    real = [[*random_images(NUM_CLASSES, 5, stream="real")]]
    counts = (2,) * NUM_CLASSES
    step = make_matching_step([network], DISTANCES["squared_euclidean"], None, counts)
    expected = step(synthetic, real, [theta], [[]], [[None] * NUM_CLASSES])
    sizes = []

    def full(
        one: Callable[[tuple[int, int]], Matched],
        indices: list[tuple[int, int]],
        device: torch.device,
        one_thread_each: bool,
        at_once: int,
    ) -> list[Matched]:
        sizes.append(at_once)
        if at_once > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return parallel_map(one, indices, device, one_thread_each=one_thread_each, at_once=at_once)

    monkeypatch.setattr(matching, "parallel_map", full)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for _ in range(2):
        again = step(synthetic, real, [theta], [[]], [[None] * NUM_CLASSES])
        for found, wanted in zip(again, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert sizes == [3, 1, 1]
    said = capsys.readouterr().err.splitlines()
    assert said == ["out of memory: from now on 1 classes at a time"]


def test_what_failed_is_free_again_before_the_next_attempt() -> None:
    """Without the collector of circles, which may come too late."""
    held: list[weakref.ref[torch.Tensor]] = []

    def one(item: int) -> int:
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def work(size: int) -> list[int]:
        if size > 1:
            return parallel_map(one, range(4), torch.device("cpu"), at_once=size)
        return [each() is None for each in held]

    gc.collect()
    gc.disable()
    try:
        free = memory.with_less_memory(work, 2, "cpu")
    finally:
        gc.enable()
    assert free and all(free)


def test_what_runs_out_in_several_threads_is_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And one that fails later does not undo what the others have found."""
    at_work, found = threading.Barrier(3), threading.Event()

    def full(late: bool, size: int) -> int:
        if size == 8:
            at_work.wait(10)
            if late:
                assert found.wait(10)
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found.set()
        return size

    with ThreadPoolExecutor(3) as executor:
        works = [partial(full, late) for late in (False, False, True)]
        sizes = [executor.submit(memory.with_less_memory, work, 8, "cpu") for work in works]
        assert [size.result() for size in sizes] == [2, 2, 2]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"out of memory: from now on {n} images at a time" for n in (4, 2)]


def test_no_more_shapes_are_compiled_for_than_pytorch_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process has blocks of different numbers of classes; the first of them are compiled for."""
    network, theta = tiny_network("mlp")
    plain, graphs = stacked_classes.stacked_transform, []

    def compiled(
        module: torch.nn.Module, distance: Distance, form: None, names: tuple[str, ...]
    ) -> Transform:
        def transform(theta: Theta, statistics: Theta, inputs: ClassInputs) -> ClassSlopes:
            graphs.append(tuple(inputs.images.shape[:2]))
            return plain(module, distance, form, names)(theta, statistics, inputs)

        return transform

    monkeypatch.setattr(stacked_classes, "compiled_transform", compiled)
    monkeypatch.setattr(derivatives, "compiled_gradient", eager)
    monkeypatch.setattr(stacked_classes, "_shapes", {})
    blocks = [(1,), (2, 2), (1, 1), (2,), (1, 1, 2), (3, 3, 3)]
    for _ in range(2):
        for counts in blocks:
            match_classes(
                theta,
                network,
                [random_images(count, stream="synthetic") for count in counts],
                [*random_images(len(counts), 5, stream="real")],
                0,
                DISTANCES["squared_euclidean"],
                None,
                [],
                [None] * len(counts),
                Engine(compiled=True),
            )
    one_time = [(1, 1), (2, 2), (2, 1), (1, 2), (2, 1), (1, 2)]  # of classes and of images
    assert graphs == one_time * 2


@pytest.mark.parametrize("library", ["CUBLAS", "CUDNN"])
def test_the_memory_of_a_library_of_cuda_is_memory(library: str) -> None:
    def full(size: int) -> int:
        if size > 2:
            raise RuntimeError(f"CUDA error: {library}_STATUS_ALLOC_FAILED when calling `create`")
        return size

    assert memory.with_less_memory(full, 8, "cpu") == 2


def test_what_ran_out_of_memory_is_recorded_again() -> None:
    """So that no recording has the work that failed."""
    recordings: list[list[int]] = []

    def record() -> list[int]:
        recordings.append([])

        def full(size: int) -> list[int]:
            recordings[-1].append(size)
            if size > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return recordings[-1]

        return memory.with_less_memory(full, 8, "cpu")

    assert settled(record) == [2]
    assert recordings == [[8, 4, 2], [2]]
    assert settled(record) == [2] and len(recordings) == 3


@pytest.mark.parametrize("message", ["CUDA out of memory", "mat1 and mat2 do not fit"])
def test_what_no_smaller_block_helps_is_an_error(message: str) -> None:
    def fail(size: int) -> int:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=message):
        memory.with_less_memory(fail, 4 if "fit" in message else 1, "cpu")
