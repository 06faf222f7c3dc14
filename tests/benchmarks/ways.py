"""Ways to condense a set of images: the plain loop of `tests/reference.py`, and the engine.

All have the same draws, which is the only thing that the plain loop shares with the engine: fresh
parameters in each iteration, and a batch of real images, and with order 2 the probes, for each
image step. Between the image steps of an iteration the network is trained on all synthetic images
at once, so that nothing else is drawn.

Shapes: C = classes, N = synthetic images, class after class, image = (ch, h, w).
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import reference
from condensation.blocks import deal
from condensation.compilation import LOWERED_TRAINING
from condensation.datasets import Dataset
from condensation.draws import Draws
from condensation.features import pixels
from condensation.initialisers import INITIALISERS
from condensation.networks import Network, build_network
from condensation.params import Params
from condensation.precisions import PRECISIONS, Precisions
from condensation.randomness import generator
from condensation.training import SCHEDULES, train
from condense import choose_engine, image_steps


@dataclass(frozen=True)
class Problem:
    """What is condensed, and where.

    Attributes:
        params: The settings; of one set, without augmentation, and with order 2 with the term in
            each image step, of all of its real images and of random probes.
        dataset: The real images that are learned from.
        device: Where.
    """

    params: Params
    dataset: Dataset
    device: torch.device

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of synthetic images of each class."""
        assert isinstance(self.params.ipc, int)
        return (self.params.ipc,) * self.dataset.num_classes

    def initial(self) -> Tensor:
        """Return the images before condensation, (N, ch, h, w), as the stage draws them."""
        draw = generator(self.params.seed, "initialize", self.params.init)
        images = INITIALISERS[self.params.init](self.dataset, self.counts, draw, pixels)
        return images.to(self.device)

    def labels(self) -> Tensor:
        """Return the class of each image, (N,)."""
        of_class = torch.arange(self.dataset.num_classes, device=self.device)
        return of_class.repeat_interleave(torch.tensor(self.counts, device=self.device))

    def network(self) -> Network:
        """Return the network that gradients are matched on."""
        name = self.params.network
        shape, classes = self.dataset.image_shape, self.dataset.num_classes
        return build_network(name, shape, classes, self.params.networks[name])

    def draws(self) -> Draws:
        """Return what is drawn, by its names."""
        seeds = range(self.params.seed, self.params.seed + 1)
        return Draws(self.dataset, seeds, None, self.device)

    def choose_engine(self) -> tuple[bool, str]:
        """Set the engine up as the stage does, in float32.

        Returns:
            Whether image steps are compiled graphs; and what was chosen, in a line.
        """
        exact: dict[str, Any] = dict.fromkeys(Precisions._fields, "float32")
        condense = dataclasses.replace(self.params.condense, **exact)
        params = dataclasses.replace(self.params, condense=condense)
        compiled, _, said = choose_engine(params, self.network(), self.counts, self.device)
        return compiled, "; ".join(said)


def plain(
    problem: Problem, compiled: bool = False, *, dtype: torch.dtype | None = None
) -> Iterator[Tensor]:
    """Yield the images after each iteration: the reference, and SGD on them.

    Args:
        problem: What is condensed.
        compiled: Nothing is.
        dtype: What all is calculated in; None: as it is drawn.
    """
    params, settings = problem.params, problem.params.condense
    network, draws, images = problem.network(), problem.draws(), problem.initial()
    images = images.to(dtype or images.dtype)
    module = copy.deepcopy(network.module)
    optimiser = torch.optim.SGD([images], lr=1.0, momentum=settings.image_momentum)
    classes = range(problem.dataset.num_classes)
    (outer, inner), labels = params.loops, problem.labels()
    form = settings.curvature.form if params.order == 2 else None
    for iteration in range(1, settings.iterations + 1):
        (theta,) = draws.thetas(network, iteration)
        theta = {name: value.to(images.dtype) for name, value in theta.items()}
        module.load_state_dict(theta, assign=True)
        for image_step in range(outer):
            place = iteration, image_step
            batches = draws.real(0, classes, settings.real_per_class, "real", *place)
            real = [batch.to(images.dtype) for batch in batches]
            by_class = images.split(params.ipc)
            number = (iteration - 1) * outer + image_step
            probes = draws.probes(theta, 0, settings.curvature.num_probes, number) if form else []
            images.grad, _ = reference.matching_step(
                module,
                by_class,
                real,
                settings.distance,
                form,
                settings.curvature.weight,
                [list(probe.values()) for probe in probes],
            )
            optimiser.param_groups[0]["lr"] = _rate(params, *place)
            optimiser.step()
            if image_step < outer - 1:
                rate = settings.network_learning_rate
                reference.train(module, images, labels, inner, len(images), rate)
        yield images.clone()


def engine(problem: Problem, compiled: bool = False, *, precision: str) -> Iterator[Tensor]:
    """Yield the images after each iteration, by the image step of the stage `condense`.

    Args:
        problem: What is condensed.
        compiled: Of `Problem.choose_engine`.
        precision: A key of `PRECISIONS`, of the gradients on real images, and of the training on
            a type of device of `LOWERED_TRAINING`.
    """
    params, settings = problem.params, problem.params.condense
    network, draws, images = problem.network(), problem.draws(), problem.initial()[None]
    blocks = deal(1, problem.dataset.num_classes, 1)[0]
    steps = image_steps(params, network, problem.counts, draws, blocks, compiled, precision)
    optimiser = torch.optim.SGD([images], lr=1.0, momentum=settings.image_momentum)
    (outer, inner), labels = params.loops, problem.labels()
    lower = PRECISIONS[precision] if problem.device.type in LOWERED_TRAINING else None
    for iteration in range(1, settings.iterations + 1):
        thetas = draws.thetas(network, iteration)
        for image_step in range(outer):
            images.grad = steps.match(images, thetas, iteration, image_step).gradient
            optimiser.param_groups[0]["lr"] = _rate(params, iteration, image_step)
            optimiser.step()
            if image_step < outer - 1:
                only = train(
                    thetas[0],
                    network,
                    images[0],
                    labels,
                    epochs=inner,
                    batch_size=len(labels),
                    learning_rate=settings.network_learning_rate,
                    momentum=0.0,
                    weight_decay=0.0,
                    generator=generator(draws.seeds[0], "inner", iteration, image_step),
                    compiled=compiled,
                    in_parts=True,
                    autocast=lower,
                )
                thetas = [only]
        yield images[0].clone()


def _rate(params: Params, iteration: int, image_step: int) -> float:
    settings, (outer, _) = params.condense, params.loops
    part = ((iteration - 1) * outer + image_step) / (settings.iterations * outer)
    return settings.image_learning_rate * SCHEDULES[settings.image_schedule](part)


Way = Callable[[Problem, bool], Iterator[Tensor]]
"""`(problem, whether image steps are compiled)` -> the images (N, ch, h, w) of each iteration."""

REFERENCE, BFLOAT16 = "reference", "engine, in bfloat16"

WAYS: dict[str, Way] = {
    REFERENCE: plain,
    "engine": partial(engine, precision="float32"),
    BFLOAT16: partial(engine, precision="bfloat16"),
}
