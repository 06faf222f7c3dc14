"""What the report says: plain tables and texts -> blocks of `documents`."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from condensation.documents import Block, Heading, Paragraph, Picture, Table
from condensation.image_sets import is_folder

PACKAGES = ("torch", "torchvision", "numpy", "matplotlib", "safetensors", "dvc")

CAPTIONS = {
    "synthetic": "The synthetic images of each class beside the first real ones.",
    "start_and_end": "The synthetic images before and after condensation.",
    "animation": "The first image of each class from iteration 0 to the last (animated).",
    "snapshots": "The first image of each class at the iterations that are evaluated.",
    "accuracy": "Accuracy against iterations of condensation; dotted: trained on all real images.",
    "seconds": "The same against seconds of condensation.",
    "retained": "Accuracy on the final images as a part of the ceiling.",
    "loss": "Matching loss, in total and by class, on a log scale.",
    "classes": "Accuracy by class on the final images.",
    "confusion": "What networks trained on the final images take each class for, in percent.",
}
"""Name of a figure -> what it shows. The order is that of the report."""


def report_blocks(
    figures: Mapping[str, Path],
    metrics: Mapping[str, Mapping[str, float | None]],
    curves: Mapping[str, pd.DataFrame],
    classes: Mapping[str, pd.DataFrame],
    runs: Sequence[tuple[str, str, float, str]],
    settings: Mapping[str, Any],
) -> list[Block]:
    """Return the blocks of the report.

    Args:
        figures: Name of a figure -> its file.
        metrics: Network -> accuracy, std, n, retained (None where the ceiling is 0), ceiling,
            ceiling_std, ceiling_n, sets and, of several, std_between_sets and std_within_sets.
        curves: Network -> its curve (see `plots`).
        classes: Network -> its table of classes (see `class_plots`).
        runs: Stage, what it did, seconds, device.
        settings: params.yaml.
    """

    def pictures(*names: str) -> list[Block]:
        return [Picture(figures[name], CAPTIONS[name]) for name in names if name in figures]

    part = "the test set" if settings["split"] == "test" else "the validation part"
    return [
        Paragraph(_summary(settings)),
        Heading("Accuracy"),
        Paragraph(
            f"In percent of {part}, mean ± sample standard deviation over n fresh networks, each "
            "after its last epoch; `ceiling`: the same network trained on all real images; "
            "`retained`: the part of the ceiling that is reached."
        ),
        _results(metrics),
        *pictures("retained"),
        Heading("The images"),
        *pictures("synthetic", "start_and_end", "snapshots", "animation"),
        Heading("In the course of condensation"),
        *pictures("accuracy", "seconds", "loss"),
        _course(curves),
        Heading("Class by class"),
        *pictures("classes", "confusion"),
        _by_class(classes),
        Heading("What was run"),
        Paragraph(
            "Seconds as measured by each stage, without starting Python and reading files; "
            "`prepare`, `initialize` and `render` are not timed."
        ),
        _runs(runs),
        Heading("Environment"),
        Paragraph("Of the stage that wrote this report; devices are in the table above."),
        Table(("what", "which"), _environment(), numbers=False),
        Heading("Settings"),
        Table(("setting", "value"), flatten(used(settings)), numbers=False),
    ]


def used(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those of networks that are neither matched nor evaluated."""
    evaluated = set(settings["evaluate"]["networks"])
    others = settings["networks"].keys() - evaluated

    def without(section: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
        return {
            key: without(value, names) if key == "by_network" else value
            for key, value in section.items()
            if key not in names
        }

    return {
        **settings,
        "networks": without(settings["networks"], others - {settings["network"]}),
        **{name: without(settings[name], others) for name in ("baseline", "evaluate")},
    }


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as rows: dotted key, value as text."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if key == "by_network":  # so it is called in the code; params.yaml has the networks here
            rows += flatten(value, prefix)
        elif isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            rows.append((f"{prefix}{key}", ", ".join(map(str, value))))
        else:
            rows.append((f"{prefix}{key}", "auto" if value is None else str(value)))
    return rows


def spread_text(mean: float | None, std: float | None, n: float | None, digits: int = 1) -> str:
    """Write a mean with its spread and count: `92.7 ± 0.5 (n = 5)`; nothing of no mean."""
    if mean is None or pd.isna(mean):
        return ""
    known = std is not None and not pd.isna(std)
    spread = f" ± {std:.{digits}f}" if known else ""
    return f"{mean:.{digits}f}{spread} (n = {n:.0f})"


def _summary(settings: Mapping[str, Any]) -> str:
    images = settings["evaluate"]["images"]
    if not is_folder(images):
        return f"Networks trained on the synthetic images of `{images}`, which were made elsewhere."
    steps = settings["condense"]["iterations"]
    return (
        f"`{settings['dataset']}` condensed to {_number_of_images(settings)}, by matching "
        f"gradients {'and curvature ' if settings['order'] == 2 else ''}of "
        f"`{settings['network']}` (order {settings['order']}) for {steps} iterations, from "
        f"`{settings['init']}`; seed {settings['seed']}."
    )


def _number_of_images(settings: Mapping[str, Any]) -> str:
    ipc = settings["ipc"]
    if isinstance(ipc, Mapping):
        return f"{sum(ipc.values())} synthetic images, of each class its own number"
    images = "image" if ipc == 1 else "images"
    if settings["ipc_shares"] == "proportional":
        return f"{ipc} synthetic {images} per class on average, in proportion to the real ones"
    return f"{ipc} synthetic {images} for each class"


def _results(metrics: Mapping[str, Mapping[str, float | None]]) -> Table:
    several = any((found.get("sets") or 1) > 1 for found in metrics.values())
    rows = [
        (
            f"`{network}`",
            spread_text(found["accuracy"], found["std"], found["n"]),
            *(_of_sets(found) if several else ()),
            spread_text(found["ceiling"], found["ceiling_std"], found["ceiling_n"], 2),
            _percent(found.get("retained")),
        )
        for network, found in metrics.items()
    ]
    of_sets = ("sets", "std between sets", "std within a set") if several else ()
    first = ("network", "trained on the synthetic images")
    return Table((*first, *of_sets, "ceiling", "retained"), rows)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"


def _of_sets(found: Mapping[str, float | None]) -> tuple[str, ...]:
    spreads = (found.get("std_between_sets"), found.get("std_within_sets"))
    return f"{found['sets']}", *("" if std is None else f"{std:.2f}" for std in spreads)


def _course(curves: Mapping[str, pd.DataFrame]) -> Table:
    iterations = sorted({int(i) for curve in curves.values() for i in curve["iteration"]})
    rows = []
    for iteration in iterations:
        cells, seconds = [], 0.0
        for curve in curves.values():
            found = curve[curve["iteration"] == iteration]
            if found.empty:
                cells.append("")
                continue
            row = found.iloc[0]
            seconds = row["seconds"]
            cells.append(spread_text(row["accuracy"], row["std"], row["n"]))
        rows.append((str(iteration), f"{seconds:.0f}", *cells))
    return Table(("iteration", "seconds", *(f"`{network}`" for network in curves)), rows)


def _by_class(classes: Mapping[str, pd.DataFrame]) -> Table:
    names = next(iter(classes.values()))["class"]
    columns = [
        [spread_text(*values) for values in zip(t["accuracy"], t["std"], t["n"], strict=True)]
        for t in classes.values()
    ]
    rows = list(zip(names, *columns, strict=True))
    return Table(("class", *(f"`{network}`" for network in classes)), rows)


def _runs(runs: Sequence[tuple[str, str, float, str]]) -> Table:
    rows = [(f"`{stage}`", did, f"{seconds:.0f}", device) for stage, did, seconds, device in runs]
    total = sum(seconds for _, _, seconds, _ in runs)
    rows.append(("together", "", f"{total:.0f}", ""))
    return Table(("stage", "did", "seconds", "device"), rows)


def _environment() -> list[tuple[str, str]]:
    return [
        ("system", f"{platform.system()}, {platform.machine()}"),
        ("Python", platform.python_version()),
        *((package, version(package)) for package in PACKAGES),
    ]
