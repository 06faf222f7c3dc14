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
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from condensation.allocator import keep_freed_memory
from condensation.artefacts import SyntheticSet
from condensation.augmentation import AUGMENTATIONS
from condensation.blocks import Block, assemble
from condensation.checkpoints import Checkpoints
from condensation.compilation import choose_kernels, choose_precision, choose_transform
from condensation.condensation_progress import Condensation
from condensation.condensed import keep_last, read_initial, write_curves, write_sets
from condensation.counts import counts_text
from condensation.curvature import CURVATURE_FORMS
from condensation.curvature_plan import CurvaturePlan
from condensation.datasets import load_training
from condensation.devices import choose_device, describe_device, has_bfloat16
from condensation.distances import DISTANCES
from condensation.draws import Draws
from condensation.files import check_writable, together, write_json
from condensation.fingerprints import fingerprint
from condensation.health import Watch, not_finite, without_gradient
from condensation.matching import Curvature, Engine, Matched, MatchingStep, make_matching_step
from condensation.network_sizes import refusal
from condensation.networks import Network, Theta, build_network
from condensation.params import Params, load_params, run_stage
from condensation.precisions import PRECISIONS
from condensation.progress import Progress
from condensation.protocols import PROTOCOLS
from condensation.randomness import generator, set_determinism
from condensation.ranks import Ranks, joined, launch, started_by_torchrun
from condensation.sources import source_of
from condensation.states import State, momentum_of, put_momentum
from condensation.training import SCHEDULES, train
from condensation.workers import parallel_map

OUTPUT = Path("data/condensed")
RESULTS = Path("results/condense")


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
        "bfloat16": params.condense.real_precision is None and has_bfloat16(device),
    }


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
    inputs = [Path("data/prepared"), Path("data/initial")]
    name = fingerprint(determinants(params, device), inputs)
    with (
        joined(device) as ranks,
        Checkpoints("condense", name, ranks.agree, ranks.first) as checkpoints,
        together(),
    ):
        condense(params, device, checkpoints, ranks)


def condense(params: Params, device: torch.device, checkpoints: Checkpoints, ranks: Ranks) -> None:
    """Learn the images and write them.

    Raises:
        ValueError: The data do not fit the settings, or the numbers are not finite any more.
    """
    settings = params.condense
    dataset = load_training(Path("data/prepared"), params.split)
    names = dataset.class_names
    if reason := refusal(params.used_networks, dataset.image_shape, dataset.num_classes):
        raise ValueError(reason)
    network = build_network(
        params.network, dataset.image_shape, dataset.num_classes, params.networks[params.network]
    )
    initial = read_initial(Path("data/initial"), params.sets, dataset.image_shape, names)
    counts, labels = initial[0].counts, initial[0].labels.to(device)
    augmentation = AUGMENTATIONS[augmentation_name(params)]
    seeds = range(params.seed, params.seed + params.sets)
    draws = Draws(dataset, seeds, augmentation, device)
    blocks = ranks.blocks(params.sets, dataset.num_classes)
    outer, inner = params.loops
    compiled, *said = choose_transform(params.compile, network, device, settings.iterations * outer)
    schedule = SCHEDULES[settings.image_schedule]
    kept = {*settings.snapshots, *frame_iterations(settings.iterations, settings.frames)}

    per_step = params.sets * dataset.num_classes * settings.real_per_class
    # A product with second derivatives takes about as long as the gradient of twice the images.
    passes = 1 if params.order == 1 else 3
    num_images = settings.iterations * outer * per_step * passes
    said.append(choose_kernels(params.compile, network, device, num_images))
    precision, why = choose_precision(settings.real_precision, network, device, in_one_pass(params))
    if ranks.agree(int(precision == "float32")):  # on several machines, one may have no other
        precision = "float32"
    if ranks.first:
        for line in filter(None, (*said, why)):
            say(line)
    match = make_match(params, network, counts, draws, blocks, compiled, precision)

    checkpoint = checkpoints.piece("images")
    state = ranks.share(checkpoint.load())
    done = (
        Condensation.of(state, device)
        if state is not None
        else Condensation.begin(
            torch.stack([each.images for each in initial]).to(device), dataset.num_classes
        )
    )
    start = time.perf_counter() - done.seconds
    images = done.images.requires_grad_()
    optimiser = torch.optim.SGD(
        [images], lr=settings.image_learning_rate, momentum=settings.image_momentum
    )
    put_momentum(done.momentum, optimiser, {"images": images})

    def progress(iteration: int, image_step: int, thetas: list[Theta], total: Tensor) -> State:
        momentum = momentum_of(optimiser, {"images": images})
        for value in momentum.values():
            ranks.gather(value, counts)
        ranks.gather(total, [1] * len(counts))
        ranks.gather_thetas(thetas, len(counts))
        return dataclasses.replace(
            done,
            momentum=momentum,
            iteration=iteration,
            image_step=image_step,
            thetas=thetas,
            total=total,
            seconds=time.perf_counter() - start,
        ).state()

    def train_on_images(thetas: list[Theta], iteration: int, image_step: int, k: int) -> Theta:
        if not any(k in block.sets for block in blocks):  # another process needs it, not this one
            return thetas[k]
        return train(
            thetas[k],
            network,
            images[k].detach(),
            labels,
            epochs=inner,
            batch_size=settings.network_batch_size,
            learning_rate=settings.network_learning_rate,
            momentum=0.0,
            weight_decay=0.0,
            generator=generator(seeds[k], "inner", iteration, image_step),
            compiled=compiled,
            augmentation=augmentation,
        )

    where = describe_device(device) + (f" in each of {ranks.size} processes" * (ranks.size > 1))
    bar = Progress(
        describe_work(params, counts),
        settings.iterations + 1 - done.iteration,
        "iteration",
        where,
    )
    watch = Watch(names, counts, sum(done.losses[0]) if done.losses else None)
    thetas, total, first_step = done.thetas, done.total, done.image_step
    for iteration in bar.over(range(done.iteration, settings.iterations + 1)):
        thetas = thetas or draws.thetas(network, iteration)
        for image_step in range(first_step, outer):
            steps_done = (iteration - 1) * outer + image_step
            optimiser.param_groups[0]["lr"] = settings.image_learning_rate * schedule(
                steps_done / (settings.iterations * outer)
            )
            matched = match(images.detach(), thetas, iteration, image_step)
            images.grad = matched.gradient
            optimiser.step()
            total += matched.loss / outer
            if image_step < outer - 1:
                ranks.gather(images, counts)
                continued = partial(train_on_images, thetas, iteration, image_step)
                thetas = parallel_map(continued, range(params.sets), device)
                checkpoint.offer(partial(progress, iteration, image_step + 1, thetas, total))
        ranks.gather(images, counts)
        still = without_gradient(matched.gradient, counts)
        figures = torch.stack([total, *matched[2:], still.to(total)], 2)
        ranks.gather(figures, [1] * len(counts))
        total, *curvature, still = figures.unbind(2)
        if problem := not_finite(total, images.detach(), counts, names):
            last = dataclasses.replace(initial[0], images=done.good[0].cpu())
            raise ValueError(
                f"iteration {iteration}: {problem}; look at condense.image_learning_rate, "
                f"condense.distance, order and condense.curvature.weight"
                f"{keep_last(last, iteration - 1, checkpoints)}"
            )
        for warning in watch.look(iteration, total, still.bool(), images):
            say(warning)
        done.good = images.detach().clone()
        done.losses.append(total.mean(0).tolist())
        if params.order == 2 and curvature[1].any():  # not where the last image step was without it
            done.curvature.append((iteration, *(value.mean().item() for value in curvature)))
        bar.show(loss=f"{sum(done.losses[-1]):.4g}")
        if iteration in kept:
            done.snapshots[iteration] = images.detach().cpu().clone()
            done.timing.append((iteration, time.perf_counter() - start))
        thetas, total, first_step = [], torch.zeros_like(total), 0
        checkpoint.offer(partial(progress, iteration + 1, first_step, thetas, total))

    if ranks.first:
        write_results(params, initial, done, where, device, precision)


def in_one_pass(params: Params) -> bool:
    """Whether each image step has its real gradients in the pass of the curvature's products."""
    curvature = params.condense.curvature
    return (
        params.order == 2
        and CURVATURE_FORMS[curvature.form].with_gradient is not None
        and curvature.probes == "rademacher"
        and curvature.every == 1
        and curvature.iterations is None
        and curvature.layers is None
        and (curvature.real_per_class or params.condense.real_per_class)
        >= params.condense.real_per_class
    )


def write_results(
    params: Params,
    initial: list[SyntheticSet],
    done: Condensation,
    where: str,
    device: torch.device,
    precision: str,
) -> None:
    """Write the images, the curves and the metrics, and say how it went."""
    record, made = describe(params, device, precision)
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
    params: Params, device: torch.device, precision: str
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return how the images are made: for the metadata of each file, and at length for the card."""
    settings, name = params.condense, augmentation_name(params)
    record = {
        "network": params.network,
        "order": str(params.order),
        "condense": repr(settings),
        "augmentation": name,
        "torch": torch.__version__,
        "device": device.type,  # not its threads: with one image a class any number gives the same
    }
    hidden = {"snapshots", "frames", "processes", *(["curvature"] if params.order == 1 else [])}
    if precision == "float32":
        hidden.add("real_precision")
    else:
        record["real_precision"] = precision
    outer, inner = params.loops
    made = {
        **dataclasses.asdict(settings),
        "real_precision": precision,
        "augmentation": name,
        "outer": outer,
        "inner": inner,
    }
    return record, {key: value for key, value in made.items() if key not in hidden}


Match = Callable[[Tensor, Sequence[Theta], int, int], Matched]
"""`(images, theta of each set, iteration, image step)`."""


def make_match(
    params: Params,
    network: Network,
    counts: tuple[int, ...],
    draws: Draws,
    blocks: list[Block],
    compiled: bool,
    precision: str,
) -> Match:
    """Return the image step on these blocks of sets and classes; elsewhere it gives zeros.

    With curvature where it is due, else without; `precision` is a key of `PRECISIONS`.
    """
    settings, (outer, _) = params.condense, params.loops
    distance = DISTANCES[settings.distance]
    engine = Engine(
        compiled,
        draws.most_real(settings.real_per_class),
        PRECISIONS[precision],
    )
    random_probes = settings.curvature.probes == "rademacher"
    plan = None
    if params.order == 2:
        term = Curvature(
            CURVATURE_FORMS[settings.curvature.form],
            settings.curvature.weight,
            settings.curvature.real_per_class or settings.real_per_class,
            settings.curvature.layers,
        )
        plan = CurvaturePlan(
            term,
            SCHEDULES[settings.curvature.schedule],
            settings.curvature.every,
            (settings.curvature.iterations or settings.iterations) * outer,
            settings.iterations * outer,
        )

    recorded: dict[tuple[Block, bool], MatchingStep] = {}
    weight = torch.zeros((), device=draws.device)

    def step_of(block: Block, second: Curvature | None, networks: list[Network]) -> MatchingStep:
        # Of a compiled step there is one for all weights, which it reads each time.
        sets, classes = block
        own_counts = counts[classes.start : classes.stop]
        make = partial(make_matching_step, networks, distance)
        if not compiled:
            return make(second, own_counts, classes.start, engine)
        if second is not None:
            weight.fill_(second.weight)
            second = dataclasses.replace(second, weight=weight)
        key = block, second is None
        if key not in recorded:
            recorded[key] = make(second, own_counts, classes.start, engine)
        return recorded[key]

    def match(images: Tensor, thetas: Sequence[Theta], iteration: int, image_step: int) -> Matched:
        number = (iteration - 1) * outer + image_step
        second = None if plan is None else plan.at(number)
        place = (iteration, image_step)
        following = None
        if number + 1 < settings.iterations * outer:
            following = ("real", (number + 1) // outer + 1, (number + 1) % outer)
        parts: list[tuple[Block, Matched]] = []
        for block in blocks:
            sets, classes = block
            probes: list[list[Theta]] = [[] for _ in sets]
            if second is not None and random_probes:
                probes = [
                    draws.probes(thetas[k], k, settings.curvature.num_probes, number) for k in sets
                ]
            real = [
                draws.real(k, classes, settings.real_per_class, "real", *place, following=following)
                for k in sets
            ]
            networks = [draws.frozen(network, thetas[k], k, *place) for k in sets]
            step = step_of(block, second, networks)
            own = images[sets.start : sets.stop, block.rows(counts)]
            siamese = [draws.siamese(k, classes, number) for k in sets]
            parts.append((block, step(own, real, [thetas[k] for k in sets], probes, siamese)))
        return assemble(parts, images, counts)

    return match


if __name__ == "__main__":
    run_stage(main)
