"""Gradient matching: data/initial -> data/condensed, the synthetic sets and their snapshots.

Algorithm 1 of Zhao, Mopuri and Bilen (ICLR 2021), with a term of curvature where `order` is 2.
Shapes: K = independent sets, C = classes, N = synthetic images, class after class, R = real images
of a class, image = (ch, h, w).
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from condensation.allocator import keep_freed_memory
from condensation.artefacts import SyntheticSet
from condensation.augmentation import AUGMENTATIONS
from condensation.blocks import Block
from condensation.checkpoints import Checkpoint, Checkpoints
from condensation.compilation import (
    choose_kernels,
    choose_network_precision,
    choose_real_precision,
    choose_transform,
)
from condensation.condensation_progress import Condensation
from condensation.condensed import keep_last, read_initial, write_curves, write_sets
from condensation.counts import counts_text
from condensation.curvature import CURVATURE_FORMS
from condensation.curvature_plan import CurvaturePlan
from condensation.datasets import load_training
from condensation.devices import HostCopies, choose_device, describe_device, has_bfloat16
from condensation.distances import DISTANCES
from condensation.draws import Draws
from condensation.files import check_writable, together, write_json
from condensation.fingerprints import fingerprint
from condensation.health import Watch, not_finite, without_gradient
from condensation.image_steps import ImageSteps
from condensation.matching import Curvature, Engine, Matched
from condensation.network_sizes import refusal
from condensation.networks import Network, Theta, build_network
from condensation.normalisation import has_norm
from condensation.params import Params, load_params, run_stage
from condensation.precisions import PRECISIONS, Precisions
from condensation.progress import Progress
from condensation.protocols import PROTOCOLS
from condensation.randomness import generator, set_determinism
from condensation.ranks import Ranks, joined, launch, started_by_torchrun
from condensation.sgd import describe_recording, pays_to_record
from condensation.sources import source_of
from condensation.states import State, momentum_of, put_momentum
from condensation.training import SCHEDULES, train
from condensation.workers import parallel_map

OUTPUT = Path("data/condensed")
RESULTS = Path("results/condense")

LOOKED_AT_LATER = {"cuda": 1}
"""How many of the last iterations the host has not looked at yet, by type of device; elsewhere 0.
If it waited for the numbers of each, the device would have nothing to do until it has the next."""


def augmentation_name(params: Params) -> str:
    """Return the key of `AUGMENTATIONS`; `auto` is what the published DSA takes for the dataset."""
    return params.condense.augmentation or PROTOCOLS["dsa"](params.dataset).augmentation


def frame_iterations(iterations: int, num_frames: int) -> set[int]:
    """Choose iterations for the animation, 0 and the last among them, closer at the beginning.

    The images change most then: the places are squares of equal steps.
    """
    places = [(frame / (num_frames - 1)) ** 2 for frame in range(num_frames)]
    return {round(place * iterations) for place in places}


def say(text: str) -> None:
    """Print a line for the user beside the progress bar."""
    tqdm.write(f"condense: {text}", file=sys.stderr)


def determinants(params: Params, device: torch.device) -> dict[str, Any]:
    """Return what the images depend on, beside the input files and the code."""
    return {
        "seed": params.seed,
        "sets": params.sets,
        "ipc": params.ipc,
        "network": params.network,
        "order": params.order,
        "split": params.split,
        "device": describe_device(device),
        "compile": params.compile,
        "options": params.networks[params.network],
        "condense": dataclasses.replace(params.condense, processes=1),
        "augmentation": augmentation_name(params),
        "bfloat16": None in asked_precisions(params) and has_bfloat16(device),
    }


def asked_precisions(params: Params) -> tuple[str | None, ...]:
    """Return the settings that `Precisions` are chosen by, in its order."""
    return tuple(getattr(params.condense, key) for key in Precisions._fields)


def main() -> None:
    """Run the stage, in several processes if the settings say so."""
    params = load_params(Path("params.yaml"))
    keep_freed_memory()
    set_determinism()
    device = choose_device(params.device)
    check_writable(OUTPUT / "synthetic.safetensors", RESULTS / "loss.csv")
    if params.condense.processes > 1 and not started_by_torchrun():
        launch(Path(__file__), params.condense.processes, device)
        return
    with joined(device) as ranks:
        inputs = [Path("data/prepared"), Path("data/initial")]
        name = fingerprint(determinants(params, device), inputs)
        with Checkpoints("condense", name, ranks.agree, ranks.first) as checkpoints, together():
            condense(params, device, checkpoints, ranks)


def condense(params: Params, device: torch.device, checkpoints: Checkpoints, ranks: Ranks) -> None:
    """Learn the images and write them.

    Raises:
        ValueError: The data do not fit the settings, or the numbers are not finite any more.
    """
    dataset = load_training(Path("data/prepared"), params.split)
    names, shape = dataset.class_names, dataset.image_shape
    if reason := refusal(params.used_networks, shape, dataset.num_classes):
        raise ValueError(reason)
    options = params.networks[params.network]
    network = build_network(params.network, shape, dataset.num_classes, options)
    initial = read_initial(Path("data/initial"), params.sets, shape, names)
    seeds = range(params.seed, params.seed + params.sets)
    draws = Draws(dataset, seeds, AUGMENTATIONS[augmentation_name(params)], device)
    blocks = ranks.blocks(params.sets, dataset.num_classes)
    counts = initial[0].counts
    compiled, precisions, said = choose_engine(params, network, counts, device)
    precisions = Precisions(
        # On several machines, one may have no other than float32.
        *("float32" if ranks.agree(int(each == "float32")) else each for each in precisions)
    )
    recorded = trains_recorded(params, sum(counts), device)
    if ranks.first:
        for line in said:
            say(line)
        if recorded and not compiled:
            say(f"compile: {params.compile}{describe_recording(True)}")
    steps = image_steps(params, network, counts, draws, blocks, compiled, precisions.real_precision)

    checkpoint = checkpoints.piece("images")
    state = ranks.share(checkpoint.load())
    done = (
        Condensation.of(state, device)
        if state is not None
        else Condensation.begin(
            torch.stack([each.images for each in initial]).to(device), dataset.num_classes
        )
    )

    def keep_good(iteration: int) -> str:
        last = dataclasses.replace(initial[0], images=done.good[0])
        return keep_last(last, iteration, checkpoints)

    where = describe_device(device) + (f" in each of {ranks.size} processes" * (ranks.size > 1))
    left = range(done.iteration, params.condense.iterations + 1)
    bar = Progress(describe_work(params, counts), len(left), "iteration", where)
    labels = initial[0].labels.to(device)
    training = partial(
        train,
        network=network,
        labels=labels,
        compiled=compiled,
        recorded=recorded,
        in_parts=True,
        autocast=PRECISIONS[precisions.network_precision],
    )
    run = Run(params, steps, done, training, names, ranks, checkpoint, keep_good)
    for _ in bar.over(left):
        run.iterate()
        if done.losses:
            bar.show(loss=f"{sum(done.losses[-1]):.4g}")
    if ranks.first:
        write_results(params, initial, done, where, device, precisions)


class Outcome(NamedTuple):
    """What came of an iteration, not looked at yet.

    Attributes:
        iteration: Which.
        copies: Of its figures (K, C, 5), the matching loss, those of the term of curvature as in
            `Matched`, and whether the image gradient is zero; and of the images after it.
    """

    iteration: int
    copies: HostCopies


class Run:
    """Images and networks in their turns, as one of several processes sees them."""

    def __init__(
        self,
        params: Params,
        steps: ImageSteps,
        done: Condensation,
        training: Callable[..., Theta],
        class_names: tuple[str, ...],
        ranks: Ranks,
        checkpoint: Checkpoint,
        keep_good: Callable[[int], str],
    ) -> None:
        """Go on from where it is.

        Args:
            params: The settings.
            steps: The image steps.
            done: How far it is; goes on with each image step, but for its momentum and seconds,
                which are those of the last checkpoint, and for what comes of looking at an
                iteration (`LOOKED_AT_LATER`).
            training: `train` with all that does not change in the course of the run.
            class_names: One for each class.
            ranks: The processes.
            checkpoint: Where it goes on from after an interruption.
            keep_good: Keeps `done.good`, the images after this iteration, and says where.
        """
        self._start = time.perf_counter() - done.seconds
        settings = params.condense
        self._params, self._steps, self._done = params, steps, done
        self._training, self._class_names = training, class_names
        self._ranks, self._checkpoint, self._keep_good = ranks, checkpoint, keep_good
        self._outcomes: list[Outcome] = []
        self._kept = {*settings.snapshots, *frame_iterations(settings.iterations, settings.frames)}
        self._images = done.images.requires_grad_()
        self._optimiser = torch.optim.SGD(
            [self._images], lr=settings.image_learning_rate, momentum=settings.image_momentum
        )
        put_momentum(done.momentum, self._optimiser, {"images": self._images})
        self._watch = Watch(class_names, steps.counts, has_norm(steps.network.module))

    def iterate(self) -> None:
        """Finish the iteration that it is at: image steps, with training of the networks between.

        Raises:
            ValueError: The numbers are not finite any more.
        """
        done, outer = self._done, self._steps.outer
        done.thetas = done.thetas or self._steps.draws.thetas(self._steps.network, done.iteration)
        for image_step in range(done.image_step, outer):
            matched = self._match(image_step)
            if image_step < outer - 1:
                self._ranks.gather(self._images, self._steps.counts)
                continued = partial(self._train, image_step)
                done.thetas = parallel_map(continued, range(self._params.sets), self._images.device)
                done.image_step = image_step + 1
                self._checkpoint.offer(self._state)
        self._finish(matched)
        done.iteration, done.image_step, done.thetas = done.iteration + 1, 0, []
        done.total = torch.zeros_like(done.total)
        self._checkpoint.offer(self._state)

    def _match(self, image_step: int) -> Matched:
        settings, outer, done = self._params.condense, self._steps.outer, self._done
        part = ((done.iteration - 1) * outer + image_step) / (settings.iterations * outer)
        factor = SCHEDULES[settings.image_schedule](part)
        self._optimiser.param_groups[0]["lr"] = settings.image_learning_rate * factor
        matched = self._steps.match(self._images.detach(), done.thetas, done.iteration, image_step)
        self._images.grad = matched.gradient
        self._optimiser.step()
        done.total += matched.loss / outer
        return matched

    def _train(self, image_step: int, k: int) -> Theta:
        # The network of set k on the set's images.
        settings, steps, theta = self._params.condense, self._steps, self._done.thetas[k]
        if not any(k in block.sets for block in steps.blocks):  # needed elsewhere
            return theta
        _, inner = self._params.loops
        return self._training(
            theta,
            images=self._images[k].detach(),
            epochs=inner,
            batch_size=settings.network_batch_size,
            learning_rate=settings.network_learning_rate,
            momentum=0.0,
            weight_decay=0.0,
            generator=generator(steps.draws.seeds[k], "inner", self._done.iteration, image_step),
            augmentation=AUGMENTATIONS[augmentation_name(self._params)],
        )

    def _finish(self, matched: Matched) -> None:
        # Note what came of the iteration; `matched` is of its last image step.
        done, counts, iteration = self._done, self._steps.counts, self._done.iteration
        self._ranks.gather(self._images, counts)
        still = without_gradient(matched.gradient, counts)
        figures = torch.stack([done.total, *matched[2:], still.to(done.total)], 2)
        self._ranks.gather(figures, [1] * len(counts))
        self._outcomes.append(Outcome(iteration, HostCopies([figures, self._images])))
        if iteration not in self._kept:
            self._look(LOOKED_AT_LATER.get(self._images.device.type, 0))
            return
        self._look()
        done.snapshots[iteration] = done.good.clone()  # which is not pinned
        done.timing.append((iteration, time.perf_counter() - self._start))

    def _look(self, later: int = 0) -> None:
        # Look at what has not been looked at, but for the last `later` iterations.
        done, counts = self._done, self._steps.counts
        while len(self._outcomes) > later:
            iteration, copies = self._outcomes.pop(0)
            figures, images = copies.wait()
            total, *curvature, still = figures.unbind(2)
            if problem := not_finite(total, images, counts, self._class_names):
                raise ValueError(
                    f"iteration {iteration}: {problem}; look at condense.image_learning_rate, "
                    "condense.distance, order and condense.curvature.weight"
                    f"{self._keep_good(iteration - 1)}"
                )
            done.good = images
            done.losses.append(total.mean(0).tolist())
            first = sum(done.losses[0])
            found = self._watch.look(iteration, total, first, still.bool(), images, done.warnings)
            for warning in found:
                say(warning.text)
            done.warnings += found
            # Not where the last image step was without it.
            if self._params.order == 2 and curvature[1].any():
                means = (value.mean().item() for value in curvature)
                done.curvature.append((iteration, *means))

    def _state(self) -> State:
        self._look()
        done, counts = self._done, self._steps.counts
        done.momentum = momentum_of(self._optimiser, {"images": self._images})
        for value in done.momentum.values():
            self._ranks.gather(value, counts)
        self._ranks.gather(done.total, [1] * len(counts))
        self._ranks.gather_thetas(done.thetas, len(counts))
        done.seconds = time.perf_counter() - self._start
        return done.state()


def choose_engine(
    params: Params, network: Network, counts: Sequence[int], device: torch.device
) -> tuple[bool, Precisions, list[str]]:
    """Choose how image steps and the training between them are calculated, and build what it takes.

    Returns:
        Whether they are compiled graphs; the precisions; and what was chosen, and why, in a line
        each for the compiled graphs, for the kernels and for the precisions, where there was a
        choice.
    """
    settings, (outer, inner) = params.condense, params.loops
    num_steps, num_epochs = settings.iterations * outer, settings.iterations * (outer - 1) * inner
    compiled, of_transform = choose_transform(params.compile, network, device, num_steps)
    # A product with second derivatives takes about as long as the gradient of twice the images.
    passes = 1 if params.order == 1 else 3
    num_real = num_steps * len(counts) * settings.real_per_class * passes
    num_images = params.sets * (num_real + num_epochs * sum(counts))
    of_kernels = choose_kernels(params.compile, network, device, num_images)
    plan = curvature_plan(params)
    in_one_pass = plan is not None and plan.in_one_pass(settings.real_per_class)
    of_real, of_network = asked_precisions(params)
    real, why = choose_real_precision(of_real, network, device, in_one_pass)
    # Where nothing is trained it does not matter, and files say nothing of it.
    of_network = of_network if num_epochs else "float32"
    trained, why_trained = choose_network_precision(of_network, network, device)
    lines = (of_transform, of_kernels, why, why_trained)
    return compiled, Precisions(real, trained), [line for line in lines if line]


def trains_recorded(params: Params, num_images: int, device: torch.device) -> bool:
    """Whether the training between image steps, on so many images, goes by CUDA graphs."""
    settings, (outer, inner) = params.condense, params.loops
    batches = -(-num_images // settings.network_batch_size)
    steps = settings.iterations * (outer - 1) * inner * batches
    return pays_to_record(params.compile, device, steps)


def curvature_plan(params: Params) -> CurvaturePlan | None:
    """Return when the term of curvature is due, and with which weight; None with order 1."""
    if params.order == 1:
        return None
    settings, curvature, (outer, _) = params.condense, params.condense.curvature, params.loops
    term = Curvature(
        CURVATURE_FORMS[curvature.form],
        curvature.weight,
        curvature.real_per_class or settings.real_per_class,
        curvature.layers,
    )
    return CurvaturePlan(
        term,
        SCHEDULES[curvature.schedule],
        curvature.every,
        until=(curvature.iterations or settings.iterations) * outer,
        steps=settings.iterations * outer,
        num_probes=curvature.num_probes if curvature.probes == "rademacher" else 0,
    )


def image_steps(
    params: Params,
    network: Network,
    counts: Sequence[int],
    draws: Draws,
    blocks: Sequence[Block],
    compiled: bool,
    precision: str,
) -> ImageSteps:
    """Return the image steps of these settings, on these blocks of sets and classes.

    Args:
        params: The settings.
        network: That gradients are matched on.
        counts: The number of synthetic images of each class.
        draws: What is drawn.
        blocks: The sets and classes.
        compiled: Whether each is a compiled graph; see `choose_engine`.
        precision: A key of `PRECISIONS`, of gradients on real images.
    """
    settings, (outer, _) = params.condense, params.loops
    most_real = draws.most_real(settings.real_per_class)
    return ImageSteps(
        network,
        counts,
        draws,
        blocks,
        DISTANCES[settings.distance],
        curvature_plan(params),
        settings.real_per_class,
        (settings.iterations, outer),
        Engine(compiled, most_real, PRECISIONS[precision]),
    )


def write_results(
    params: Params,
    initial: list[SyntheticSet],
    done: Condensation,
    where: str,
    device: torch.device,
    precisions: Precisions,
) -> None:
    """Write the images, the curves and the metrics, and say how it went."""
    record, made = describe(params, device, precisions)
    write_sets(OUTPUT, initial, done.snapshots, record, made, source_of(params.dataset))
    write_curves(RESULTS, done, initial[0].class_names, where)
    loss = float(f"{sum(done.losses[-1]):.6g}")
    write_json(RESULTS / "metrics.json", {"condense": {"loss": loss}})
    print(
        f"condense: matching loss {loss} after {params.condense.iterations} iterations "
        f"({sum(done.losses[0]):.6g} after the first), {done.timing[-1][1]:.0f} s"
    )


def describe_work(params: Params, counts: tuple[int, ...]) -> str:
    """Say what is going to be done."""
    several = f"{params.sets} sets of " if params.sets > 1 else ""
    return (
        f"condense: {several}{len(counts)} classes x {counts_text(counts)} images on "
        f"{params.network}, order {params.order}, {params.condense.iterations} iterations"
    )


def describe(
    params: Params, device: torch.device, precisions: Precisions
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return how the images are made: for the metadata of each file, and at length for the card."""
    settings, name = params.condense, augmentation_name(params)
    record = {
        "network": params.network,
        "order": str(params.order),
        "condense": repr(settings),
        "augmentation": name,
        "torch": torch.__version__,
        "device": device.type,  # not its threads: of a ConvNet any number gives the same
    }
    hidden = {"snapshots", "frames", "processes", *(["curvature"] if params.order == 1 else [])}
    for key, precision in precisions._asdict().items():
        if precision == "float32":
            hidden.add(key)
        else:
            record[key] = precision
    outer, inner = params.loops
    made = {
        **dataclasses.asdict(settings),
        **precisions._asdict(),
        "augmentation": name,
        "outer": outer,
        "inner": inner,
    }
    return record, {key: value for key, value in made.items() if key not in hidden}


if __name__ == "__main__":
    run_stage(main)
