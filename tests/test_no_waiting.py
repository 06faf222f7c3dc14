"""Nothing in an image step makes the host wait for the device: on CUDA its queue would run dry.

Where there is no CUDA device, the step runs on the device `meta`, whose tensors hold no numbers:
what asks for one fails, and what is copied there is watched on its way.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

import condense
from condensation.augmentation import AUGMENTATIONS
from condensation.batches import Batches
from condensation.blocks import deal
from condensation.checkpoints import Checkpoint
from condensation.condensation_progress import Condensation
from condensation.curvature import CURVATURE_FORMS
from condensation.datasets import Dataset
from condensation.devices import HostCopies
from condensation.distances import DISTANCES
from condensation.draws import Draws
from condensation.interruption import Interruption
from condensation.matching import Curvature, Engine, MatchingStep, make_matching_step
from condensation.params import load_params
from condensation.randomness import generator
from condensation.ranks import Ranks
from condensation.real_images import RealImages
from condensation.stacked import one_gradient
from condensation.training import train
from conftest import IMAGE_SHAPE, NUM_CLASSES, tiny_network
from workspace import write_params

META = torch.device("meta")
FORMS = [None, *CURVATURE_FORMS]
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")
"""Events of the profiler in which the host waits, or which come with a wait."""
WAITS_FOR_ALL = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "Memcpy DtoH (Device -> Page")
"""Those that are not for copies to pinned memory, which are begun and waited for later."""
NUMBERS = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero")
"""Those in which it takes a number of a tensor, which it may do of its own alone."""


class Watch(TorchDispatchMode):
    """Refuses copies to the device that the host waits for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = args[0] if func.overloadpacket is torch.ops.aten._to_copy else args[1]
            from_host = isinstance(source, Tensor) and source.device.type == "cpu"
            waits = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if from_host and result.device == META and waits:
                raise AssertionError("the host waits for a copy to the device")
        return result


Drawn = tuple[Any, ...]


def image_step(
    dataset: Dataset,
    device: torch.device,
    form: str | None,
    norm: str = "instance",
    compiled: bool = False,
) -> tuple[Callable[[], Drawn], Callable[[Drawn], object]]:
    """Return the two halves of an image step: the draws; matching and the images' own step."""
    draws = Draws(dataset, range(1), AUGMENTATIONS["dsa"], device)
    network, _ = tiny_network("convnet", norm=norm)
    curvature = Curvature(CURVATURE_FORMS[form], 0.3, 4) if form else None
    images = torch.zeros(1, 2 * NUM_CLASSES, *IMAGE_SHAPE, device=device).requires_grad_()
    optimiser = torch.optim.SGD([images], lr=0.1, momentum=0.5)
    engine = Engine(compiled, draws.most_real(6), torch.bfloat16 if compiled else None)
    numbers = iter(range(1000))
    steps: list[MatchingStep] = []
    classes = range(NUM_CLASSES)

    def draw() -> Drawn:
        number = next(numbers)
        thetas = draws.thetas(network, number)
        frozen = draws.frozen(network, thetas[0], 0, number)
        real = draws.real(0, classes, 6, "real", number)
        siamese = draws.siamese(0, classes, number)
        probes = draws.probes(thetas[0], 0, 1, number)
        return frozen, [real], thetas, [probes], [siamese]

    def match(drawn: Drawn) -> None:
        if not (steps and compiled):  # which is one for all
            distance = DISTANCES["squared_euclidean"]
            counts = [2] * NUM_CLASSES
            steps[:] = [make_matching_step([drawn[0]], distance, curvature, counts, engine=engine)]
        images.grad = steps[0](images.detach(), *drawn[1:]).gradient
        optimiser.step()

    return draw, match


@pytest.mark.parametrize(("form", "norm"), [*((f, "instance") for f in FORMS), (None, "batch")])
def test_an_image_step_asks_the_device_for_nothing(
    form: str | None, norm: str, tiny_dataset: Dataset
) -> None:
    draw, match = image_step(tiny_dataset, META, form, norm)
    with Watch():
        match(draw())


class Begun:
    """Copies to the host's memory that are begun, of a device without numbers."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Nothing arrives."""
        assert {tensor.device for tensor in tensors} == {META}


def begun_run(
    folder: Path,
    dataset: Dataset,
    device: torch.device,
    changes: dict[str, Any],
    compiled: bool = False,
) -> tuple[condense.Run, Condensation]:
    """Return a run of the stage, of which only the last iteration is kept, and how far it is."""
    few_kept = {"condense.iterations": 99, "condense.frames": 2, "condense.snapshots": []}
    write_params(folder, {"network": "convnet", **few_kept, **changes})
    params = load_params(folder / "params.yaml")
    network, _ = tiny_network("convnet")
    counts, draws = [2] * NUM_CLASSES, Draws(dataset, range(1), None, device)
    blocks = deal(1, NUM_CLASSES, 1)[0]
    steps = condense.image_steps(params, network, counts, draws, blocks, compiled, "float32")
    images = torch.zeros(1, sum(counts), *IMAGE_SHAPE, device=device)
    total = torch.zeros(1, NUM_CLASSES, device=device)
    done = Condensation(images, torch.zeros(images.shape), {}, 1, 0, [], total)
    run = condense.Run(
        params,
        steps,
        done,
        training=partial(
            train,
            network=network,
            labels=torch.arange(NUM_CLASSES, device=device).repeat_interleave(2),
            compiled=compiled,
            recorded=condense.trains_recorded(params, sum(counts), device),
        ),
        class_names=dataset.class_names,
        ranks=Ranks(),
        checkpoint=Checkpoint(None, Interruption(), "condense"),
        keep_good=str,
    )
    return run, done


@pytest.mark.parametrize("order", [1, 2])
def test_an_iteration_asks_the_device_for_nothing(
    order: int, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one image step, without training; what came of it is not looked at yet."""
    monkeypatch.setattr(condense, "HostCopies", Begun)
    monkeypatch.setattr(condense, "LOOKED_AT_LATER", {"meta": 2})
    changes = {"order": order, "condense.outer": 1}
    run, done = begun_run(tmp_path, tiny_dataset, META, changes)
    with Watch():
        run.iterate()
        run.iterate()
    assert done.iteration == 3 and done.losses == []


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_training_step_asks_the_device_for_nothing(augmentation: str) -> None:
    network, theta = tiny_network("convnet")
    stacked = {key: value.to(META)[None] for key, value in theta.items()}
    images = torch.zeros(7, *IMAGE_SHAPE, dtype=torch.float64, device=META)
    batches = Batches(
        [images],
        [torch.zeros(7, dtype=torch.int64, device=META)],
        [generator(0, "training")],
        epochs=2,
        batch_size=4,
        augmentation=AUGMENTATIONS[augmentation],
    )
    gradient = one_gradient(network)
    with Watch():
        for shown, labels in batches.steps():
            gradient(stacked, shown, labels)


def from_the_host(dataset: Dataset, device: torch.device) -> Batches:
    """Return batches of images that have no room on the device."""
    return Batches(
        [RealImages(dataset, device, on_device=False)],
        [dataset.labels.to(device)],
        [generator(0, "training")],
        epochs=4,
        batch_size=4,
        augmentation=None,
    )


def test_training_on_images_in_the_host_s_memory_asks_the_device_for_nothing(
    tiny_dataset: Dataset,
) -> None:
    """Nor for the index of the images: it stays where they are."""
    batches = from_the_host(tiny_dataset, META)
    with Watch():
        found = [(shown.device, labels.device) for shown, labels in batches.steps()]
    assert found == [(META, META)] * batches.total


def test_what_waits_is_noticed() -> None:
    with pytest.raises(AssertionError, match="the host waits"), Watch():
        torch.ones(3).to(META)
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones((), device=META).item()
    cpu = torch.device("cpu")
    assert waits(lambda: torch.ones(()).item(), cpu, NUMBERS) == {*NUMBERS[:2]}
    assert waits(lambda: torch.ones(3) + 1, cpu, NUMBERS) == set()


def waits(run: Callable[[], object], device: torch.device, names: tuple[str, ...]) -> set[str]:
    """Return which of these events of the profiler there are in a run."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    with profile(activities=activities, acc_events=True) as found, record_function("the run"):
        run()
    events = found.events()
    assert events is not None
    (span,) = {
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.name == "the run" and event.device_type.name == "CPU"
    }
    return {
        event.name
        for event in events
        # The profiler itself waits at its end. What the device does may come later than the run.
        if event.name.startswith(names)
        and ("Memcpy" in event.name or span[0] <= event.time_range.start <= span[1])
    }


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_on_cuda_the_profiler_sees_no_wait(
    form: str | None, compiled: bool, tiny_dataset: Dataset
) -> None:
    torch.compiler.reset()
    cuda = torch.device("cuda")
    draw, match = image_step(tiny_dataset, cuda, form, compiled=compiled)
    for _ in range(3):  # what is built, tuned and recorded at first
        match(draw())
    assert waits(draw, cuda, WAITS) == set()
    drawn = draw()
    assert waits(lambda: match(drawn), cuda, (*WAITS, *NUMBERS)) == set()


@pytest.mark.cuda
def test_on_cuda_batches_from_the_host_s_memory_come_without_a_wait(tiny_dataset: Dataset) -> None:
    cuda = torch.device("cuda")
    steps = from_the_host(tiny_dataset, cuda).steps()
    for _ in range(3):
        next(steps)
    assert waits(lambda: next(steps), cuda, WAITS) == set()


@pytest.mark.cuda
@pytest.mark.parametrize("order", [1, 2])
def test_on_cuda_an_iteration_waits_for_no_more_than_the_one_before(
    order: int, tmp_path: Path, tiny_dataset: Dataset
) -> None:
    """For its copies, which are there by then: image steps, training, and looking."""
    torch.compiler.reset()
    cuda = torch.device("cuda")
    changes = {"order": order, "condense.outer": 2}
    run, done = begun_run(tmp_path, tiny_dataset, cuda, changes, compiled=True)
    for _ in range(4):  # what is built, tuned and recorded at first
        run.iterate()
    assert waits(run.iterate, cuda, WAITS_FOR_ALL) == set()
    assert done.iteration == 6 and len(done.losses) == 4


@pytest.mark.cuda
def test_on_cuda_copies_for_the_host_are_begun_without_a_wait_and_are_of_their_time() -> None:
    cuda = torch.device("cuda")
    HostCopies([torch.zeros(5, device=cuda)]).wait()  # pinned memory is there from now on
    values = torch.arange(5.0, device=cuda)
    copies: list[HostCopies] = []

    def copy_and_change() -> None:
        copies.append(HostCopies([values, values > 2]))
        values.zero_()

    assert waits(copy_and_change, cuda, (*WAITS_FOR_ALL, "cudaEventSynchronize")) == set()
    found, above = copies[0].wait()
    assert found.tolist() == [0, 1, 2, 3, 4] and above.tolist() == [False] * 3 + [True] * 2
