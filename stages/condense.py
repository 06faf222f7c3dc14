"""Gradient matching: data/initial -> data/condensed, the synthetic set and its snapshots.

Algorithm 1 of Zhao, Mopuri and Bilen (ICLR 2021), with a term of curvature where `order` is 2.
"""

import dataclasses
import time
from pathlib import Path

import torch
from torch import Tensor

from condensation.allocator import keep_freed_memory
from condensation.artefacts import SyntheticSet, read_synthetic_set, write_synthetic_set
from condensation.datasets import Dataset, load_training, sample_class
from condensation.devices import choose_device, describe_device
from condensation.distances import DISTANCES
from condensation.files import write_csv, write_json
from condensation.matching import CURVATURE_TERMS, Curvature, draw_probes, make_matching_step
from condensation.networks import build_network, init_theta
from condensation.params import Params, load_params, run_stage
from condensation.product import write_product
from condensation.progress import Progress
from condensation.randomness import generator, set_determinism
from condensation.sources import SOURCES
from condensation.training import SCHEDULES, train

PUBLISHED_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""ipc -> (outer, inner) of Zhao et al.; another ipc takes the nearest."""


def loops(params: Params) -> tuple[int, int]:
    """Return (image steps for each network, epochs of training it after each)."""
    nearest = min(PUBLISHED_LOOPS, key=lambda ipc: (abs(ipc - params.ipc), ipc))
    outer, inner = PUBLISHED_LOOPS[nearest]
    settings = params.condense
    return settings.outer or outer, inner if settings.inner is None else settings.inner


def frame_iterations(iterations: int, num_frames: int) -> set[int]:
    """Choose iterations for the animation, 0 and the last among them, closer at the beginning.

    The images change most then: the places are squares of equal steps.
    """
    places = [(frame / (num_frames - 1)) ** 2 for frame in range(num_frames)]
    return {round(place * iterations) for place in places}


def draw_real(dataset: Dataset, by_class: list[Tensor], params: Params, *stream: int) -> Tensor:
    """Draw a batch of real images of each class: (C, R, ch, h, w), normalised."""
    drawn = [
        sample_class(
            images, params.condense.real_per_class, name, generator(params.seed, "real", *stream, c)
        )
        for c, (images, name) in enumerate(zip(by_class, dataset.class_names, strict=True))
    ]
    return dataset.normalise(torch.stack(drawn))


def check_loss(loss: Tensor, iteration: int, class_names: tuple[str, ...]) -> None:
    """Stop where the matching loss (C,) is no longer a number.

    Raises:
        ValueError: Naming the iteration, the classes and the settings to look at.
    """
    finite = loss.isfinite().tolist()
    if not all(finite):
        lost = [name for name, fine in zip(class_names, finite, strict=True) if not fine]
        raise ValueError(
            f"the matching loss is not finite at iteration {iteration} (classes: "
            f"{', '.join(lost)}); look at condense.image_learning_rate, "
            "condense.distance, order and condense.curvature.weight"
        )


def main() -> None:
    """Run the stage."""
    params = load_params(Path("params.yaml"))
    settings = params.condense
    keep_freed_memory()
    set_determinism()
    device = choose_device(params.device)
    dataset = load_training(Path("data/prepared"), params.split)
    by_class = [dataset.class_images(c) for c in range(dataset.num_classes)]
    initial = read_synthetic_set(Path("data/initial/synthetic.safetensors"))
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

    images = initial.images.to(device).requires_grad_()
    labels = initial.labels.flatten().to(device)
    optimiser = torch.optim.SGD(
        [images], lr=settings.image_learning_rate, momentum=settings.image_momentum
    )
    metadata = {
        **initial.metadata,  # init, seed, split
        "network": params.network,
        "order": str(params.order),
        "condense": repr(settings),
        "torch": torch.__version__,
        "device": device.type,  # and not its threads: the bytes do not depend on them
    }
    kept = {*settings.snapshots, *frame_iterations(settings.iterations, settings.frames)}
    snapshots: dict[int, Tensor] = {0: images.detach().cpu().clone()}
    losses: list[list[float]] = []
    timing = [(0, 0.0)]
    seconds, start = 0.0, time.perf_counter()
    what = (
        f"condense: {dataset.num_classes} classes x {params.ipc} images on {params.network}, "
        f"order {params.order}, {settings.iterations} iterations"
    )
    bar = Progress(what, settings.iterations, "iteration", describe_device(device))
    for iteration in bar.over(range(1, settings.iterations + 1)):
        theta = init_theta(network, generator(params.seed, "theta", iteration), device)
        total = torch.zeros(dataset.num_classes, device=device)
        for image_step in range(outer):
            real = draw_real(dataset, by_class, params, iteration, image_step).to(device)
            probes = []
            if curvature is not None:
                stream = generator(params.seed, "probes", iteration, image_step)
                probes = draw_probes(theta, settings.curvature.num_probes, stream)
            done = (iteration - 1 + image_step / outer) / settings.iterations
            optimiser.param_groups[0]["lr"] = settings.image_learning_rate * schedule(done)
            images.grad, loss = step(images.detach(), real, theta, probes)
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
        check_loss(total, iteration, dataset.class_names)
        losses.append(total.tolist())
        bar.show(loss=f"{sum(losses[-1]):.4g}")
        if iteration in kept:
            seconds = time.perf_counter() - start
            snapshots[iteration] = images.detach().cpu().clone()
            timing.append((iteration, seconds))

    for iteration, snapshot in snapshots.items():
        record = {**metadata, "iteration": str(iteration)}
        synthetic = SyntheticSet(snapshot, initial.mean, initial.std, initial.class_names, record)
        write_synthetic_set(
            Path(f"data/condensed/snapshots/{iteration:06d}.safetensors"), synthetic
        )
        if iteration == settings.iterations:
            write_synthetic_set(Path("data/condensed/synthetic.safetensors"), synthetic)
            made = {**record, **dataclasses.asdict(settings), "outer": outer, "inner": inner}
            hidden = {"condense", "iteration", "snapshots", "frames"}
            hidden |= {"curvature"} if params.order == 1 else set()
            made = {name: value for name, value in made.items() if name not in hidden}
            write_product(Path("data/condensed"), synthetic, SOURCES[params.dataset], made)
    results = Path("results/condense")
    write_csv(
        results / "loss.csv",
        ["iteration", "loss"],
        [(i, f"{sum(row):.6g}") for i, row in enumerate(losses, start=1)],
    )
    write_csv(
        results / "loss_by_class.csv",
        ["iteration", "class", "loss"],
        [
            (i, name, f"{value:.6g}")
            for i, row in enumerate(losses, start=1)
            for name, value in zip(dataset.class_names, row, strict=True)
        ],
    )
    write_csv(
        results / "timing.csv",
        ["iteration", "seconds", "device"],
        [(i, f"{spent:.2f}", describe_device(device)) for i, spent in timing],
    )
    final_loss = float(f"{sum(losses[-1]):.6g}")
    write_json(results / "metrics.json", {"condense": {"loss": final_loss}})
    print(
        f"condense: matching loss {final_loss} after {settings.iterations} iterations "
        f"({sum(losses[0]):.6g} after the first), {seconds:.0f} s"
    )


if __name__ == "__main__":
    run_stage(main)
