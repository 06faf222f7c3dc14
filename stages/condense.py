"""Gradient matching: data/initial -> data/condensed, the synthetic set and its snapshots.

Algorithm 1 of Zhao, Mopuri and Bilen (ICLR 2021), with a term of curvature where `order` is 2.
"""

import dataclasses
import sys
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from condensation.allocator import keep_freed_memory
from condensation.artefacts import (
    SyntheticSet,
    check_fit,
    encode_synthetic_set,
    read_synthetic_set,
    write_synthetic_set,
)
from condensation.checkpoints import Checkpoints, shown
from condensation.datasets import Dataset, load_training, sample_class
from condensation.devices import choose_device, describe_device
from condensation.distances import DISTANCES
from condensation.files import check_writable, together, write_at_once, write_csv, write_json
from condensation.fingerprints import fingerprint
from condensation.health import Watch, not_finite
from condensation.matching import CURVATURE_TERMS, Curvature, draw_probes, make_matching_step
from condensation.networks import Theta, build_network, init_theta
from condensation.params import Params, load_params, run_stage
from condensation.progress import Progress
from condensation.randomness import generator, set_determinism
from condensation.states import State
from condensation.training import SCHEDULES, train

INITIAL = Path("data/initial/synthetic.safetensors")
OUTPUT = Path("data/condensed/synthetic.safetensors")
RESULTS = Path("results/condense")
PUBLISHED_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""ipc -> (outer, inner) of Zhao et al.; another ipc takes the nearest."""


def loops(params: Params) -> tuple[int, int]:
    """Return (image steps for each network, epochs of training it after each)."""
    nearest = min(PUBLISHED_LOOPS, key=lambda ipc: (abs(ipc - params.ipc), ipc))
    outer, inner = PUBLISHED_LOOPS[nearest]
    settings = params.condense
    return settings.outer or outer, inner if settings.inner is None else settings.inner


def draw_real(dataset: Dataset, by_class: list[Tensor], params: Params, *stream: int) -> Tensor:
    """Draw a batch of real images of each class: (C, R, ch, h, w), normalised."""
    drawn = [
        sample_class(
            images, params.condense.real_per_class, name, generator(params.seed, "real", *stream, c)
        )
        for c, (images, name) in enumerate(zip(by_class, dataset.class_names, strict=True))
    ]
    return dataset.normalise(torch.stack(drawn))


def begin(images: Tensor, kept: Collection[int], device: torch.device) -> Progress:
    """Return the state before the first iteration."""
    total = torch.zeros(len(images), device=device)
    at = Progress(images.to(device, copy=True), images.to(device, copy=True), None, 1, 0, {}, total)
    if 0 in kept:
        at.snapshots[0] = images.clone()
        at.timing.append((0, 0.0))
    return at


def keep_last(images: SyntheticSet, iteration: int, checkpoints: Checkpoints) -> str:
    """Write the last images that are numbers, and say where; nothing where nothing can be kept."""
    if checkpoints.folder is None:
        return ""
    path = checkpoints.folder / f"iteration-{iteration:06d}.safetensors"
    record = {**images.metadata, "iteration": str(iteration)}
    write_at_once(path, encode_synthetic_set(dataclasses.replace(images, metadata=record)))
    return f"; the images of iteration {iteration} are in {shown(path)}"


def say(text: str) -> None:
    """Print a line for the user beside the progress bar."""
    tqdm.write(f"condense: {text}", file=sys.stderr)


def determinants(params: Params, device: torch.device) -> dict[str, Any]:
    """Return what the images depend on, beside the input files and the code."""
    return {
        "seed": params.seed,
        "ipc": params.ipc,
        "network": params.network,
        "order": params.order,
        "split": params.split,
        "device": describe_device(device),
        "options": params.networks[params.network],
        "condense": params.condense,
    }


def main() -> None:
    """Run the stage."""
    params = load_params(Path("params.yaml"))
    keep_freed_memory()
    set_determinism()
    device = choose_device(params.device)
    check_writable(OUTPUT, RESULTS / "loss.csv")
    inputs = [Path("data/prepared"), Path("data/initial")]
    name = fingerprint(determinants(params, device), inputs)
    with Checkpoints("condense", name) as checkpoints, together():
        condense(params, device, checkpoints)


def condense(params: Params, device: torch.device, checkpoints: Checkpoints) -> None:
    """Learn the images and write them.

    Raises:
        ValueError: The data do not fit the settings, or the numbers are not finite any more.
    """
    settings = params.condense
    dataset = load_training(Path("data/prepared"), params.split)
    by_class = [dataset.class_images(c) for c in range(dataset.num_classes)]
    for members, name in zip(by_class, dataset.class_names, strict=True):
        if len(members) < settings.real_per_class:
            raise ValueError(
                f"condense.real_per_class: got {settings.real_per_class}, takes at most the "
                f"{len(members)} real images of class '{name}'"
            )
    initial = read_synthetic_set(INITIAL)
    check_fit(INITIAL, initial, dataset.image_shape, dataset.class_names)
    network = build_network(
        params.network,
        dataset.image_shape,
        dataset.num_classes,
        params.networks[params.network],
    )
    curvature = None
    if params.order == 2:
        term = CURVATURE_TERMS[settings.curvature.form]
        curvature = Curvature(term, settings.curvature.weight)
    step = make_matching_step(network, DISTANCES[settings.distance], curvature)
    outer, inner = loops(params)
    schedule = SCHEDULES[settings.image_schedule]

    checkpoint = checkpoints.piece("images")
    kept = {*settings.snapshots, settings.iterations}
    before = begin(initial.images, kept, device)
    if (state := checkpoint.load()) is not None:
        before = Progress.of(state, device)
    losses, snapshots, timing = before.losses, before.snapshots, before.timing
    start = time.perf_counter() - before.seconds
    images = before.images.requires_grad_()
    labels = initial.labels.flatten().to(device)
    optimiser = torch.optim.SGD(
        [images], lr=settings.image_learning_rate, momentum=settings.image_momentum
    )
    if before.momentum is not None:
        optimiser.state[images]["momentum_buffer"] = before.momentum
    metadata = {
        **initial.metadata,  # init, seed, split
        "network": params.network,
        "order": str(params.order),
        "condense": repr(settings),
        "torch": torch.__version__,
        "device": device.type,  # and not its threads: the bytes do not depend on them
    }

    def progress(iteration: int, image_step: int, theta: Theta, total: Tensor) -> State:
        momentum = optimiser.state[images].get("momentum_buffer")
        seconds = time.perf_counter() - start
        at = (images, good, momentum, iteration, image_step, theta, total)
        return Progress(*at, losses, snapshots, timing, seconds).state()

    bar = tqdm(
        range(before.iteration, settings.iterations + 1),
        desc=f"condense, order {params.order}",
        initial=before.iteration - 1,
        total=settings.iterations,
        disable=None,
    )
    theta, total, first_step = before.theta, before.total, before.image_step
    good = before.good
    watch = Watch(dataset.class_names, sum(losses[0]) if losses else None)
    for iteration in bar:
        theta = theta or init_theta(network, generator(params.seed, "theta", iteration), device)
        for image_step in range(first_step, outer):
            real = draw_real(dataset, by_class, params, iteration, image_step).to(device)
            probes = []
            if curvature is not None:
                stream = generator(params.seed, "probes", iteration, image_step)
                probes = draw_probes(theta, settings.curvature.num_probes, stream)
            done = (iteration - 1 + image_step / outer) / settings.iterations
            optimiser.param_groups[0]["lr"] = settings.image_learning_rate * schedule(done)
            gradient, loss = step(images.detach(), real, theta, probes)
            images.grad = gradient
            optimiser.step()
            total += loss / outer
            if image_step < outer - 1:
                theta = train(
                    theta,
                    network,
                    images.detach().flatten(0, 1),
                    labels,
                    epochs=inner,
                    batch_size=settings.network_batch_size,
                    learning_rate=settings.network_learning_rate,
                    momentum=0.0,
                    weight_decay=0.0,
                    generator=generator(params.seed, "inner", iteration, image_step),
                )
                checkpoint.offer(partial(progress, iteration, image_step + 1, theta, total))
        if problem := not_finite(total, images.detach(), dataset.class_names):
            last = SyntheticSet(
                good.cpu(), initial.mean, initial.std, initial.class_names, metadata
            )
            raise ValueError(
                f"iteration {iteration}: {problem}; look at condense.image_learning_rate, "
                f"condense.distance, order and condense.curvature.weight"
                f"{keep_last(last, iteration - 1, checkpoints)}"
            )
        for warning in watch.look(iteration, total, gradient, images):
            say(warning)
        good = images.detach().clone()
        losses.append(total.tolist())
        bar.set_postfix(loss=f"{sum(losses[-1]):.4g}")
        if iteration in kept:
            seconds = time.perf_counter() - start
            snapshots[iteration] = images.detach().cpu().clone()
            timing.append((iteration, seconds))
        theta, total, first_step = {}, torch.zeros_like(total), 0
        checkpoint.offer(partial(progress, iteration + 1, first_step, theta, total))

    for iteration, snapshot in snapshots.items():
        record = {**metadata, "iteration": str(iteration)}
        synthetic = SyntheticSet(snapshot, initial.mean, initial.std, initial.class_names, record)
        write_synthetic_set(
            Path(f"data/condensed/snapshots/{iteration:06d}.safetensors"), synthetic
        )
        if iteration == settings.iterations:
            write_synthetic_set(OUTPUT, synthetic)
    write_csv(
        RESULTS / "loss.csv",
        ["iteration", "loss"],
        [(i, f"{sum(row):.6g}") for i, row in enumerate(losses, start=1)],
    )
    write_csv(
        RESULTS / "loss_by_class.csv",
        ["iteration", "class", "loss"],
        [
            (i, name, f"{value:.6g}")
            for i, row in enumerate(losses, start=1)
            for name, value in zip(dataset.class_names, row, strict=True)
        ],
    )
    write_csv(
        RESULTS / "timing.csv",
        ["iteration", "seconds", "device"],
        [(i, f"{spent:.2f}", describe_device(device)) for i, spent in timing],
    )
    final_loss = float(f"{sum(losses[-1]):.6g}")
    write_json(RESULTS / "metrics.json", {"condense": {"loss": final_loss}})


if __name__ == "__main__":
    run_stage(main)
