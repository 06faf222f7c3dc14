"""Gradient matching: data/initial -> data/condensed, the synthetic set and its snapshots.

Algorithm 1 of Zhao, Mopuri and Bilen (ICLR 2021), with a term of curvature where `order` is 2.
"""

import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from condensation.allocator import keep_freed_memory
from condensation.artefacts import SyntheticSet, read_synthetic_set, write_synthetic_set
from condensation.datasets import Dataset, load_training, sample_class
from condensation.devices import choose_device, describe_device
from condensation.distances import DISTANCES
from condensation.files import write_csv, write_json
from condensation.matching import CURVATURE_TERMS, Curvature, draw_probes, make_matching_step
from condensation.networks import build_network, freeze_statistics, init_theta
from condensation.params import Params, load_params, run_stage
from condensation.randomness import generator, set_determinism
from condensation.training import SCHEDULES, train

PUBLISHED_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""ipc -> (outer, inner) of Zhao et al.; another ipc takes the nearest."""


def loops(params: Params) -> tuple[int, int]:
    """Return (image steps for each network, epochs of training it after each)."""
    nearest = min(PUBLISHED_LOOPS, key=lambda ipc: (abs(ipc - params.ipc), ipc))
    outer, inner = PUBLISHED_LOOPS[nearest]
    settings = params.condense
    return settings.outer or outer, inner if settings.inner is None else settings.inner


BATCH_NORM_IMAGES = 16
"""Real images of each class whose statistics batch norms are frozen at; the published number."""


def draw_for_batch_norm(
    dataset: Dataset, by_class: list[Tensor], params: Params, *stream: int
) -> Tensor:
    """Draw the real images that batch norms are frozen at: (N, ch, h, w), normalised."""
    drawn = [
        sample_class(
            images,
            min(BATCH_NORM_IMAGES, len(images)),
            name,
            generator(params.seed, "batch norm", *stream, c),
        )
        for c, (images, name) in enumerate(zip(by_class, dataset.class_names, strict=True))
    ]
    return dataset.normalise(torch.cat(drawn))


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
    kept = {*settings.snapshots, settings.iterations}
    snapshots: dict[int, Tensor] = {0: images.detach().cpu().clone()} if 0 in kept else {}
    losses: list[list[float]] = []
    timing = [(0, 0.0)] if 0 in kept else []
    seconds, start = 0.0, time.perf_counter()

    bar = tqdm(range(1, settings.iterations + 1), desc=f"condense, order {params.order}")
    for iteration in bar:
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
            if network.batch_norms:  # their statistics change with theta, so the step does too
                seen = draw_for_batch_norm(dataset, by_class, params, iteration, image_step)
                frozen = freeze_statistics(network, theta, seen.to(device))
                step = make_matching_step(frozen, DISTANCES[settings.distance], curvature)
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
        bar.set_postfix(loss=f"{sum(losses[-1]):.4g}")
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


if __name__ == "__main__":
    run_stage(main)
