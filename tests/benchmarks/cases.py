"""What is measured: the cases, and the sides of each that take turns.

The distance is the squared Euclidean one, the images are standard normal: time depends on none of
their values.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice, product
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference
from benchmarks.measure import Run, not_recorded
from benchmarks.processes import numbers_of_processes, run_of_processes
from condensation import fused, matching, recording
from condensation.allocator import keep_freed_memory
from condensation.augmentation import apply_augmentation, crop_scale_rotate
from condensation.compilation import LOWERED_TRAINING, choose_kernels
from condensation.curvature import CURVATURE_FORMS
from condensation.devices import has_bfloat16
from condensation.distances import DISTANCES
from condensation.loops import published_loops
from condensation.matching import EAGER, Curvature, Engine, draw_probes, make_matching_step
from condensation.networks import Theta, build_network, init_theta
from condensation.precisions import PRECISIONS
from condensation.randomness import generator, set_determinism
from condensation.sgd import pays_to_record
from condensation.stacked import arrange
from condensation.training import predict, train, train_together
from condensation.workers import parallel_map

DISTANCE = "squared_euclidean"
WEIGHT = 0.1
NETWORKS, TESTED = 8, 2000
"""Of the case `evaluation`: networks, and images that each is tested on."""
EPOCHS = {"mlp": 100, "lenet": 30, "convnet": 5}
"""Of the case `evaluation`: epochs of training of each network on the CPU."""
EPOCHS_ELSEWHERE = 100
"""On an accelerator, where all take about as long; the published 1000 in a tenth of the time."""
PUBLISHED_SGD: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.0005}

ORDER_1 = "order 1"
FORMS = (ORDER_1, "hvp", "lookahead", "quadratic", "ggn")
PROBED = ("hvp", "ggn_diagonal")
"""Those that take random vectors."""
ALONE = ("ggn_diagonal", "ggn_inverse")
"""Forms whose reference computes the matrix itself, which nobody would do in earnest: the engine is
measured by itself."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured: a kind, and the sizes.

    Attributes:
        kind: A key of `KINDS`.
        form: `order 1`, or a form of order 2.
        ipc: Synthetic images a class.
        classes: How many.
        real: Real images of each class in a batch.
        size: Height and width of the images, of one channel.
        sets: Independent sets.
        network: A key of the networks' registry; after hyphens width and depth, if not usual.
    """

    kind: str = "step"
    form: str = ORDER_1
    ipc: int = 1
    classes: int = 10
    real: int = 64
    size: int = 28
    sets: int = 1
    network: str = "convnet"

    @property
    def name(self) -> str:
        """The case in words, its key in the table; what is usual is left out at the end."""
        usual = {"kind": self.kind, "size": 28, "sets": 1, "network": "convnet"}
        chosen = {key: value for key, value in asdict(self).items() if value != usual.get(key)}
        words = [
            f"{key} {value}" if isinstance(value, int) else value for key, value in chosen.items()
        ]
        return ", ".join([self.kind, *words])


class Inputs:
    """Everything a step takes, on a device."""

    def __init__(self, case: Case, device: torch.device, engine: Engine = EAGER) -> None:
        """Draw it; the engine is that of the matching step."""
        self.case = case
        name, *options = case.network.split("-")
        chosen = dict(zip(("width", "depth"), map(int, options), strict=False))
        shape = (1, case.size, case.size)
        self.network = build_network(name, shape, case.classes, chosen)
        self.counts = (case.ipc,) * case.classes
        self.labels = torch.arange(case.classes).repeat_interleave(case.ipc).to(device)
        self.synthetic = _images(case.sets, case.ipc * case.classes, case.size, device)
        self.real = [
            [*of_set.split(case.real)]
            for of_set in _images(case.sets, case.classes * case.real, case.size, device)
        ]
        self.thetas = [
            init_theta(self.network, generator(k, "theta"), device) for k in range(case.sets)
        ]
        self.form = None if case.form == ORDER_1 else case.form
        self.probes: list[list[Theta]] = [
            draw_probes(theta, 1, generator(0, "probes")) if self.form in PROBED else []
            for theta in self.thetas
        ]
        siamese = [[None] * case.classes for _ in range(case.sets)]
        curvature = None
        if self.form is not None:
            curvature = Curvature(CURVATURE_FORMS[self.form], WEIGHT, case.real)
        step = make_matching_step(
            [self.network] * case.sets,
            DISTANCES[DISTANCE],
            curvature,
            self.counts,
            engine=engine,
        )
        self.step = lambda thetas: step(self.synthetic, self.real, thetas, self.probes, siamese)

    def module(self, k: int) -> nn.Module:
        """Return the network of a set as an ordinary module."""
        module = self.network.module.to_empty(device=self.synthetic.device)
        module.load_state_dict(self.thetas[k])
        return module

    def reference_step(self, modules: list[nn.Module]) -> None:
        """Match all sets, one class after the other."""
        for k, module in enumerate(modules):
            reference.matching_step(
                module,
                self.synthetic[k].split(self.counts),
                self.real[k],
                DISTANCE,
                self.form,
                WEIGHT,
                [[*probe.values()] for probe in self.probes[k]],
            )


def _images(sets: int, number: int, size: int, device: torch.device) -> Tensor:
    draw = generator(0, "images", sets, number)
    return torch.randn(sets, number, 1, size, size, generator=draw).to(device)


def set_up_engine(inputs: Inputs, device: torch.device, deterministic: bool = True) -> None:
    """Do what the stages do at their start, to the process and for this network; in float32."""
    keep_freed_memory()
    if deterministic:
        set_determinism()
    choose_kernels("on", inputs.network, device, 0)


def step(case: Case, device: torch.device, side: str) -> Run:
    """One image step: the gradient of all images of all classes."""
    return _step(Inputs(case, device, Engine(compiled=device.type == "cuda")), device, side)


def lowered_step(case: Case, device: torch.device, side: str) -> Run:
    """The same with real gradients in bfloat16.

    It is the default where the device has that, but on the CPU not for `hvp`.
    """
    lowered = Engine(compiled=device.type == "cuda", autocast=PRECISIONS["bfloat16"])
    return _step(Inputs(case, device, lowered), device, side)


def _step(inputs: Inputs, device: torch.device, side: str) -> Run:
    if side == "reference":
        modules = [inputs.module(k) for k in range(len(inputs.thetas))]
        return lambda: inputs.reference_step(modules)
    return _engine(inputs, device, lambda: inputs.step(inputs.thetas))


def _engine(
    inputs: Inputs, device: torch.device, function: Callable[[], Any], deterministic: bool = True
) -> Run:
    # The first run sets the process up: what that takes is of the first call.
    ready: list[bool] = []

    def run() -> None:
        if not ready:
            set_up_engine(inputs, device, deterministic)
            ready.append(True)
        function()

    return run


def iteration(case: Case, device: torch.device, side: str) -> Run:
    """One iteration: image steps, and after each but the last training on the images."""
    return _iteration(Inputs(case, device, Engine(compiled=device.type == "cuda")), None, side)


def lowered_iteration(case: Case, device: torch.device, side: str) -> Run:
    """The same in bfloat16 as is the default: real gradients, and where it is, that training."""
    lower = PRECISIONS["bfloat16"]
    inputs = Inputs(case, device, Engine(compiled=device.type == "cuda", autocast=lower))
    return _iteration(inputs, lower if device.type in LOWERED_TRAINING else None, side)


def _iteration(inputs: Inputs, autocast: torch.dtype | None, side: str) -> Run:
    case, device = inputs.case, inputs.synthetic.device
    outer, inner = published_loops(case.ipc)

    def of_reference() -> None:
        module = inputs.module(0)
        for number in range(outer):
            inputs.reference_step([module])
            if number < outer - 1:
                reference.train(module, inputs.synthetic[0], inputs.labels, inner, 256, 0.01)

    def of_engine() -> None:
        theta = inputs.thetas[0]
        for number in range(outer):
            inputs.step([theta])
            if number < outer - 1:
                theta = _train(inputs, theta, inner, number, autocast)

    return of_reference if side == "reference" else _engine(inputs, device, of_engine)


def _train(
    inputs: Inputs, theta: Theta, epochs: int, number: int, autocast: torch.dtype | None
) -> Theta:
    return train(
        theta,
        inputs.network,
        inputs.synthetic[0],
        inputs.labels,
        epochs=epochs,
        batch_size=256,
        learning_rate=0.01,
        momentum=0.0,
        weight_decay=0.0,
        generator=generator(number, "training"),
        compiled=inputs.synthetic.device.type == "cuda",
        recorded=inputs.synthetic.device.type == "cuda",
        in_parts=True,
        autocast=autocast,
    )


def evaluation(case: Case, device: torch.device, side: str) -> Run:
    """Fresh networks trained on the synthetic images, as published for MNIST, and tested."""
    inputs = Inputs(case, device)
    on_cpu = device.type == "cpu"
    epochs = EPOCHS[case.network.split("-")[0]] if on_cpu else EPOCHS_ELSEWHERE
    tested = _images(1, TESTED, case.size, device)[0]
    images, labels = inputs.synthetic[0], inputs.labels

    def of_reference() -> None:
        for number in range(NETWORKS):
            module, draw = inputs.module(0), generator(number, "training")
            optimiser = torch.optim.SGD(module.parameters(), lr=0.01, **PUBLISHED_SGD)
            for _ in range(epochs):
                for chosen in torch.randperm(len(images), generator=draw).split(256):
                    augmentation = crop_scale_rotate(len(chosen), (case.size, case.size), draw)
                    batch = apply_augmentation(images[chosen.to(device)], augmentation)
                    optimiser.zero_grad()
                    F.cross_entropy(module(batch), labels[chosen.to(device)]).backward()
                    optimiser.step()
            with torch.no_grad():
                for block in tested.split(1000):
                    module(block).argmax(1)

    def of_engine() -> None:
        shape = (1, case.size, case.size)
        sizes, gradient = arrange(
            [len(images)] * NETWORKS, inputs.network, shape, device, epochs=epochs, batch_size=256
        )

        def group(numbers: list[int]) -> None:
            trained = train_together(
                [inputs.thetas[0]] * len(numbers),
                gradient,
                [images] * len(numbers),
                [labels] * len(numbers),
                [generator(number, "training") for number in numbers],
                epochs=epochs,
                batch_size=256,
                learning_rate=0.01,
                augmentation=crop_scale_rotate,
                recorded=pays_to_record("auto", device, epochs),
                **PUBLISHED_SGD,
            )
            for theta in trained:
                predict(theta, inputs.network, tested)

        left = iter(range(NETWORKS))
        parallel_map(group, [list(islice(left, size)) for size in sizes], device)

    return of_reference if side == "reference" else _engine(inputs, device, of_engine)


LADDER = (
    *("reference", "classes side by side", "+ freed memory kept", "+ blocks in the cache"),
    *("+ fused operators", "+ compiled", "+ products in bfloat16"),
)
"""What the engine does, one thing after the other; the last is `real_precision`."""


def ladder(case: Case, device: torch.device, side: str) -> Run:
    """The image step with what `LADDER` lists, down to the named one."""
    rung = LADDER.index(side)
    if rung == 0:
        return step(case, device, "reference")
    lower = PRECISIONS["bfloat16"] if rung == 6 else None
    inputs = Inputs(case, device, Engine(autocast=lower))
    if rung >= 5:
        return _engine(inputs, device, lambda: inputs.step(inputs.thetas))
    if rung >= 2:
        keep_freed_memory()
    if rung < 3:
        matching.REAL_BLOCK.clear()
    if rung < 4:
        inputs.network.fused = inputs.network.module
    return lambda: _nothing(inputs.step(inputs.thetas))


CUDA_LADDER = (
    *("reference", "one transform of all classes", "+ compiled", "+ kernels for blocks"),
    *("+ one CUDA graph", "+ classes on several streams", "+ products in bfloat16"),
)
"""The same on CUDA; the last is `real_precision`."""


def cuda_ladder(case: Case, device: torch.device, side: str) -> Run:
    """The image step with what `CUDA_LADDER` lists, down to the named one."""
    rung = CUDA_LADDER.index(side)
    if rung == 0:
        return step(case, device, "reference")
    if rung < 3:
        patch.object(fused, "cuda_blocks", no_blocks).start()
    if rung < 4:
        patch.object(recording, "recordable", not_recorded).start()
    if rung < 5:
        matching.STREAMS = 1
    lower = PRECISIONS["bfloat16"] if rung == 6 else None
    inputs = Inputs(case, device, Engine(compiled=rung >= 2, autocast=lower))
    return _engine(inputs, device, lambda: inputs.step(inputs.thetas))


def no_blocks() -> None:
    """There are none, as where there is no Triton."""


DETERMINISM = ("deterministic", "not deterministic")


def determinism(case: Case, device: torch.device, side: str) -> Run:
    """The engine's image step by deterministic algorithms alone, as in the stages, and by any."""
    inputs = Inputs(case, device, Engine(compiled=device.type == "cuda"))
    function = partial(inputs.step, inputs.thetas)
    return _engine(inputs, device, function, deterministic=side == DETERMINISM[0])


def processes(case: Case, device: torch.device, side: str) -> Run:
    """An iteration of the stage `condense` in several processes."""
    return run_of_processes(case.classes, case.real, int(side.split()[0]), device)


def precision(case: Case, device: torch.device, side: str) -> str:
    """Return what most products of a side are calculated in, one of `CEILINGS` of the device."""
    if side.endswith("bfloat16"):
        return "bfloat16"
    if case.kind == "step in bfloat16" and side == "engine" and case.form == ORDER_1:
        # Of each real image three products in it, of each synthetic one nine in float32; of order 2
        # the products with second derivatives are in float32, too, and the most.
        if 3 * case.ipc <= case.real:
            return "bfloat16"
    convolutions = not case.network.startswith("mlp")
    in_tf32 = device.type == "cuda" and convolutions and torch.backends.cudnn.allow_tf32
    return "tf32" if in_tf32 else "float32"


def _nothing(_: object) -> None:
    """Leave a result."""


class Kind(NamedTuple):
    """A kind of case: its sides, given the device (none: not there), and what runs one of them."""

    sides: Callable[[torch.device], tuple[str, ...]]
    make: Callable[[Case, torch.device, str], Run]


def _two(device: torch.device) -> tuple[str, ...]:
    return "reference", "engine"


def _two_if_lowered(device: torch.device) -> tuple[str, ...]:
    return _two(device) if has_bfloat16(device) else ()


def _ladder(device: torch.device) -> tuple[str, ...]:
    if device.type != "cpu":
        return ()
    return LADDER if has_bfloat16(device) else LADDER[:-1]


KINDS: dict[str, Kind] = {
    "step": Kind(_two, step),
    "step in bfloat16": Kind(_two_if_lowered, lowered_step),
    "step by itself": Kind(lambda device: ("engine",), step),
    "iteration": Kind(_two, iteration),
    "iteration in bfloat16": Kind(_two_if_lowered, lowered_iteration),
    "evaluation": Kind(_two, evaluation),
    "ladder": Kind(_ladder, ladder),
    "ladder on CUDA": Kind(
        lambda device: CUDA_LADDER if device.type == "cuda" else (), cuda_ladder
    ),
    "determinism": Kind(lambda device: DETERMINISM, determinism),
    "processes": Kind(numbers_of_processes, processes),
}

GROWTH: dict[str, tuple[int, ...]] = {
    "ipc": (1, 10, 50),
    "classes": (2, 10, 100),
    "real": (16, 64, 256),
    "size": (16, 28, 64),
    "sets": (1, 2, 4),
}
"""What the cost is drawn against; the others are then those of `Case()`."""


def grown(key: str) -> list[Case]:
    """Return the cases of which one size grows."""
    sizes: list[dict[str, Any]] = [{key: value} for value in GROWTH[key]]
    return [replace(Case(), **size) for size in sizes]


def _in_order() -> Iterator[Case]:
    yield from (Case(form=form) for form in FORMS)
    yield Case(ipc=1, real=256)
    yield Case(ipc=10, real=256)
    for real, ipc in product((64, 256), (1, 10, 50)):
        yield Case(kind="step in bfloat16", ipc=ipc, real=real)
    for form in FORMS[1:]:
        yield Case(kind="step in bfloat16", form=form)
    for form in ALONE:
        yield Case(kind="step by itself", form=form)
    yield Case(kind="ladder")
    yield Case(kind="ladder", real=256)
    yield Case(kind="ladder on CUDA", real=256)
    yield Case(kind="ladder on CUDA", ipc=10, real=256)
    yield Case(kind="determinism")
    yield Case(kind="processes")
    for ipc, network in product((1, 10), EPOCHS):
        yield Case(kind="evaluation", ipc=ipc, network=network)
    for key in GROWTH:
        yield from grown(key)
    yield Case(kind="iteration", ipc=10)
    yield Case(kind="iteration in bfloat16", ipc=10)
    for form, ipc in product(FORMS[1:], (10, 50)):
        yield Case(kind="step in bfloat16", form=form, ipc=ipc)
    for classes, real, ipc, form in product((10, 100), (64, 256), (1, 10, 50), FORMS):
        yield Case(form=form, ipc=ipc, classes=classes, real=real)
    for kind in ("iteration", "iteration in bfloat16"):
        yield Case(kind=kind, ipc=10, real=256)


ALL: tuple[Case, ...] = tuple(dict.fromkeys(_in_order()))
"""Every case, the quick and the telling ones first."""
