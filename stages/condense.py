"""Gradient matching: data/initial -> data/condensed, the synthetic sets and their snapshots.

Algorithm 1 of Zhao, Mopuri and Bilen (ICLR 2021), with a term of curvature where `order` is 2.
Shapes: K = independent sets, C = classes, N = synthetic images, class after class, R = real images
of a class, image = (ch, h, w).
"""

import dataclasses
import sys
import time
from collections.abc import Callable
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
    set_path,
    write_synthetic_set,
)
from condensation.augmentation import AUGMENTATIONS
from condensation.checkpoints import Checkpoints, shown
from condensation.class_batches import ClassBatches
from condensation.condensation_progress import Condensation
from condensation.counts import counts_text
from condensation.curvature import CURVATURE_FORMS
from condensation.datasets import load_training
from condensation.devices import choose_device, describe_device
from condensation.distances import DISTANCES
from condensation.files import check_writable, together, write_at_once, write_csv, write_json
from condensation.fingerprints import fingerprint
from condensation.health import Watch, not_finite
from condensation.matching import (
    Curvature,
    Matched,
    RealBatches,
    Siamese,
    draw_probes,
    make_matching_step,
)
from condensation.networks import Network, Theta, build_network, freeze_statistics, init_theta
from condensation.params import Params, load_params, run_stage
from condensation.product import write_product
from condensation.progress import Progress
from condensation.protocols import PROTOCOLS
from condensation.randomness import generator, set_determinism
from condensation.real_images import RealImages
from condensation.sources import source_of
from condensation.states import State, momentum_of, put_momentum
from condensation.training import SCHEDULES, train
from condensation.workers import parallel_map

OUTPUT = Path("data/condensed")
RESULTS = Path("results/condense")
BATCH_NORM_IMAGES = 16
"""Real images of each class whose statistics batch norms are frozen at; the published number."""


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
        "options": params.networks[params.network],
        "condense": params.condense,
        "augmentation": augmentation_name(params),
    }


def main() -> None:
    """Run the stage."""
    params = load_params(Path("params.yaml"))
    keep_freed_memory()
    set_determinism()
    device = choose_device(params.device)
    check_writable(OUTPUT / "synthetic.safetensors", RESULTS / "loss.csv")
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
    names = dataset.class_names
    network = build_network(
        params.network, dataset.image_shape, dataset.num_classes, params.networks[params.network]
    )
    seeds = range(params.seed, params.seed + params.sets)
    initial = []
    for k in range(params.sets):
        path = set_path(Path("data/initial"), k)
        initial.append(read_synthetic_set(path))
        check_fit(path, initial[k], dataset.image_shape, names)
        if initial[k].counts != initial[0].counts:
            raise ValueError(f"{path}: has other numbers of images per class than the first set")
    counts, labels = initial[0].counts, initial[0].labels.to(device)
    match = make_match(params, counts)
    augmentation = AUGMENTATIONS[augmentation_name(params)]
    size = (dataset.image_shape[1], dataset.image_shape[2])
    members, real_images = dataset.members(), RealImages(dataset, device)
    batches = ClassBatches(real_images, members, seeds, settings.real_per_class)
    batch_norm_images = ClassBatches(real_images, members, seeds, BATCH_NORM_IMAGES)
    outer, inner = params.loops
    schedule = SCHEDULES[settings.image_schedule]
    kept = {*settings.snapshots, *frame_iterations(settings.iterations, settings.frames)}

    checkpoint = checkpoints.piece("images")
    state = checkpoint.load()
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
        return dataclasses.replace(
            done,
            momentum=momentum_of(optimiser, {"images": images}),
            iteration=iteration,
            image_step=image_step,
            thetas=thetas,
            total=total,
            seconds=time.perf_counter() - start,
        ).state()

    def draw_siamese(steps_done: int) -> Siamese:
        # one draw for all real and synthetic images of each set and class
        return [
            [
                augmentation and augmentation(1, size, generator(seed, "siamese", steps_done, c))
                for c in range(dataset.num_classes)
            ]
            for seed in seeds
        ]

    def train_on_images(thetas: list[Theta], iteration: int, image_step: int, k: int) -> Theta:
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
            augmentation=augmentation,
        )

    several = f"{params.sets} sets of " if params.sets > 1 else ""
    bar = Progress(
        f"condense: {several}{dataset.num_classes} classes x {counts_text(counts)} images on "
        f"{params.network}, order {params.order}, {settings.iterations} iterations",
        settings.iterations + 1 - done.iteration,
        "iteration",
        describe_device(device),
    )
    watch = Watch(names, counts, sum(done.losses[0]) if done.losses else None)
    thetas, total, first_step = done.thetas, done.total, done.image_step
    for iteration in bar.over(range(done.iteration, settings.iterations + 1)):
        thetas = thetas or [
            init_theta(network, generator(seed, "theta", iteration), device) for seed in seeds
        ]
        for image_step in range(first_step, outer):
            steps_done = (iteration - 1) * outer + image_step
            optimiser.param_groups[0]["lr"] = settings.image_learning_rate * schedule(
                steps_done / (settings.iterations * outer)
            )
            following = None
            if steps_done + 1 < settings.iterations * outer:
                following = ("real", (steps_done + 1) // outer + 1, (steps_done + 1) % outer)
            real = batches.draw("real", iteration, image_step, following=following)
            networks = [network] * params.sets
            if network.batch_norms:
                seen = batch_norm_images.draw("batch norm", iteration, image_step)
                networks = [
                    freeze_statistics(network, theta, torch.cat([*seen[k]]))
                    for k, theta in enumerate(thetas)
                ]
            siamese = draw_siamese(steps_done)
            matched = match(steps_done, networks, images.detach(), real, thetas, seeds, siamese)
            images.grad = matched.gradient
            optimiser.step()
            total += matched.loss / outer
            if image_step < outer - 1:
                continued = partial(train_on_images, thetas, iteration, image_step)
                thetas = parallel_map(continued, range(params.sets), device)
                checkpoint.offer(partial(progress, iteration, image_step + 1, thetas, total))
        if problem := not_finite(total, images.detach(), counts, names):
            last = dataclasses.replace(initial[0], images=done.good[0].cpu())
            raise ValueError(
                f"iteration {iteration}: {problem}; look at condense.image_learning_rate, "
                f"condense.distance, order and condense.curvature.weight"
                f"{keep_last(last, iteration - 1, checkpoints)}"
            )
        for warning in watch.look(iteration, total, matched.gradient, images):
            say(warning)
        done.good = images.detach().clone()
        done.losses.append(total.mean(0).tolist())
        if params.order == 2:
            means = [value.mean().item() for value in matched[2:]]
            done.curvature.append((iteration, *means))
        bar.show(loss=f"{sum(done.losses[-1]):.4g}")
        if iteration in kept:
            done.snapshots[iteration] = images.detach().cpu().clone()
            done.timing.append((iteration, time.perf_counter() - start))
        thetas, total, first_step = [], torch.zeros_like(total), 0
        checkpoint.offer(partial(progress, iteration + 1, first_step, thetas, total))

    write_sets(params, initial, done.snapshots, device)
    write_curves(done, names, describe_device(device))
    loss = float(f"{sum(done.losses[-1]):.6g}")
    write_json(RESULTS / "metrics.json", {"condense": {"loss": loss}})
    print(
        f"condense: matching loss {loss} after {settings.iterations} iterations "
        f"({sum(done.losses[0]):.6g} after the first), {done.timing[-1][1]:.0f} s"
    )


Match = Callable[[int, list[Network], Tensor, RealBatches, list[Theta], range, Siamese], Matched]
"""`(number of the step, network, images, real batch, theta and seed of each set, draws)`."""


def make_match(params: Params, counts: tuple[int, ...]) -> Match:
    """Return the matching step: with curvature where it is due, else without."""
    settings = params.condense
    distance = DISTANCES[settings.distance]
    curvature = None
    if params.order == 2:
        curvature = Curvature(
            CURVATURE_FORMS[settings.curvature.form],
            settings.curvature.weight,
            settings.curvature.real_per_class or settings.real_per_class,
        )

    def match(
        number: int,
        networks: list[Network],
        images: Tensor,
        real: RealBatches,
        thetas: list[Theta],
        seeds: range,
        siamese: Siamese,
    ) -> Matched:
        due = number % settings.curvature.every == 0
        probes: list[list[Theta]] = [[] for _ in thetas]
        if curvature is not None and due and settings.curvature.probes == "rademacher":
            probes = [
                draw_probes(theta, settings.curvature.num_probes, generator(seed, "probes", number))
                for theta, seed in zip(thetas, seeds, strict=True)
            ]
        step = make_matching_step(networks, distance, curvature if due else None, counts)
        return step(images, real, thetas, probes, siamese)

    return match


def keep_last(images: SyntheticSet, iteration: int, checkpoints: Checkpoints) -> str:
    """Write the last images that are numbers, and say where; nothing where nothing can be kept."""
    if checkpoints.folder is None:
        return ""
    path = checkpoints.folder / f"iteration-{iteration:06d}.safetensors"
    record = {**images.metadata, "iteration": str(iteration)}
    write_at_once(path, encode_synthetic_set(dataclasses.replace(images, metadata=record)))
    return f"; the images of iteration {iteration} are in {shown(path)}"


def write_sets(
    params: Params,
    initial: list[SyntheticSet],
    snapshots: dict[int, Tensor],
    device: torch.device,
) -> None:
    """Write every set: its snapshots (iteration -> (K, N, ch, h, w)), itself, card, pictures."""
    settings, name = params.condense, augmentation_name(params)
    for k, begun in enumerate(initial):
        metadata = {
            **begun.metadata,  # init, seed, split
            "network": params.network,
            "order": str(params.order),
            "condense": repr(settings),
            "augmentation": name,
            "torch": torch.__version__,
            "device": device.type,  # and not its threads: the bytes do not depend on them
        }
        for iteration, images in snapshots.items():
            record = {**metadata, "iteration": str(iteration)}
            synthetic = dataclasses.replace(begun, images=images[k], metadata=record)
            write_synthetic_set(set_path(OUTPUT, k, iteration), synthetic)
        last = {**metadata, "iteration": str(settings.iterations)}
        final = dataclasses.replace(begun, images=snapshots[settings.iterations][k], metadata=last)
        path = set_path(OUTPUT, k)
        write_synthetic_set(path, final)
        outer, inner = params.loops
        made = {**metadata, **dataclasses.asdict(settings), "outer": outer, "inner": inner}
        made["augmentation"] = name
        hidden = {"condense", "snapshots", "frames", *(["curvature"] if params.order == 1 else [])}
        shown_settings = {name: value for name, value in made.items() if name not in hidden}
        write_product(path.parent, final, source_of(params.dataset), shown_settings)


def write_curves(done: Condensation, class_names: tuple[str, ...], device: str) -> None:
    """Write the losses, what is known of the curvature term, and the seconds."""
    write_csv(
        RESULTS / "loss.csv",
        ["iteration", "loss"],
        [(i, f"{sum(row):.6g}") for i, row in enumerate(done.losses, start=1)],
    )
    write_csv(
        RESULTS / "loss_by_class.csv",
        ["iteration", "class", "loss"],
        [
            (i, name, f"{value:.6g}")
            for i, row in enumerate(done.losses, start=1)
            for name, value in zip(class_names, row, strict=True)
        ],
    )
    write_csv(
        RESULTS / "curvature.csv",
        ["iteration", "curvature", "ratio", "cosine"],
        [(int(i), *(f"{value:.4g}" for value in values)) for i, *values in done.curvature],
    )
    write_csv(
        RESULTS / "timing.csv",
        ["iteration", "seconds", "device"],
        [(i, f"{spent:.2f}", device) for i, spent in done.timing],
    )


if __name__ == "__main__":
    run_stage(main)
