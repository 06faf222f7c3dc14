"""The tables of a study: every arm by itself, and against the reference of its panel.

Arms are compared as they were measured: the same panel, network and sets.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from condensation.study_records import Cell
from condensation.study_settings import Arm, Study
from condensation.study_statistics import at_seconds, differences, reached, set_means, summary

BELOW_REFERENCE = 1.0
"""Percentage points below the reference's final accuracy that arms are timed to."""

Cells = Mapping[str, Cell]
"""Arm -> what was measured of it, of the arms that have been."""


def networks_of(cell: Cell) -> list[str]:
    """Return the networks that were trained on an arm's images, in the order of the settings."""
    return list(dict.fromkeys(cell.accuracy["network"]))


def summarise(study: Study, cells: Cells) -> pd.DataFrame:
    """Return a row for each arm, network and iteration.

    Columns: arm, panel, label, network, iteration, seconds (of one set's condensation until then;
    missing in panels that are not timed), loss (matching loss there, of all classes, mean over
    sets), and those of `summary`.
    """
    tables = []
    for arm, cell in _measured(study, cells):
        seconds = cell.seconds.set_index("iteration")["seconds"]
        loss = cell.loss.set_index("iteration")["loss"]
        for network in networks_of(cell):
            table = summary(cell.accuracy, network)
            table.insert(1, "seconds", table["iteration"].map(seconds))
            table.insert(2, "loss", table["iteration"].map(loss))
            names = {"arm": arm.key, "panel": arm.panel, "label": arm.label, "network": network}
            for place, (name, value) in enumerate(names.items()):
                table.insert(place, name, value)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def compare(study: Study, cells: Cells) -> pd.DataFrame:
    """Return the paired differences from the reference: a row for each point of comparison.

    Columns: arm, panel, label, network, by (`iteration`: at one that both were evaluated at;
    `seconds`: at the reference's; `last`: each at its own last iteration, where they differ), at,
    difference (percentage points, mean over sets), half_width, sets.
    """
    rows: list[dict[str, Any]] = []
    for arm, cell, reference in _against_reference(study, cells):
        for network in networks_of(cell):
            ours, theirs = (set_means(each.accuracy, network) for each in (cell, reference))
            if theirs.empty:
                continue
            common = [index for index in ours.columns if index in theirs.columns]
            ours, theirs = ours[common], theirs[common]
            named = {"arm": arm.key, "panel": arm.panel, "label": arm.label, "network": network}
            for iteration in ours.index.intersection(theirs.index):
                found = differences(
                    ours.loc[iteration].to_numpy(), theirs.loc[iteration].to_numpy()
                )
                rows.append({**named, "by": "iteration", "at": iteration, **_columns(found)})
            if ours.index[-1] != theirs.index[-1]:
                found = differences(ours.iloc[-1].to_numpy(), theirs.iloc[-1].to_numpy())
                rows.append({**named, "by": "last", "at": ours.index[-1], **_columns(found)})
            if arm.panel in study.untimed:
                continue
            times = _seconds(reference, theirs)
            values = at_seconds(ours, _seconds(cell, ours), times)
            for time, mine, other in zip(times, values, theirs.to_numpy(), strict=True):
                if not np.isnan(mine).any():
                    found = differences(mine, other)
                    rows.append({**named, "by": "seconds", "at": time, **_columns(found)})
    columns = ["arm", "panel", "label", "network", "by", "at", "difference", "half_width", "sets"]
    return pd.DataFrame(rows, columns=columns)


def times_to_targets(study: Study, cells: Cells) -> pd.DataFrame:
    """Return when the mean of each arm first reaches an accuracy; missing where it does not.

    Columns: arm, panel, label, network, target (percent), iterations, seconds. The targets are
    those of the study, and the final accuracy of the panel's reference less `BELOW_REFERENCE`.
    """
    references = {arm.panel: cells[arm.key] for arm in _references(study) if arm.key in cells}
    rows = []
    for arm, cell in _measured(study, cells):
        for network in networks_of(cell):
            targets = list(study.targets)
            if arm.panel in references:
                of_reference = set_means(references[arm.panel].accuracy, network)
                if not of_reference.empty:
                    targets.insert(0, float(of_reference.iloc[-1].mean()) - BELOW_REFERENCE)
            means = set_means(cell.accuracy, network)
            steps = {
                "iterations": [float(iteration) for iteration in means.index],
                "seconds": _seconds(cell, means),
            }
            for target in targets:
                found = {
                    name: reached(step, means.mean(axis=1).tolist(), target)
                    for name, step in steps.items()
                }
                names = {"arm": arm.key, "panel": arm.panel, "label": arm.label}
                rows.append({**names, "network": network, "target": round(target, 2), **found})
    columns = ["arm", "panel", "label", "network", "target", "iterations", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def _columns(found: Any) -> dict[str, float]:
    return {"difference": found.mean, "half_width": found.half_width, "sets": found.n}


def _seconds(cell: Cell, means: pd.DataFrame) -> list[float]:
    # When each iteration of a table was reached.
    seconds = cell.seconds.set_index("iteration")["seconds"]
    return [float(value) for value in seconds.loc[means.index]]


def _measured(study: Study, cells: Cells) -> Iterator[tuple[Arm, Cell]]:
    yield from ((arm, cells[arm.key]) for arm in study.arms.values() if arm.key in cells)


def _references(study: Study) -> list[Arm]:
    return [arm for arm in study.arms.values() if arm.label == study.reference]


def _against_reference(study: Study, cells: Cells) -> Iterator[tuple[Arm, Cell, Cell]]:
    references = {arm.panel: arm.key for arm in _references(study)}
    for arm, cell in _measured(study, cells):
        key = references.get(arm.panel, arm.key)
        if key in cells and key != arm.key:
            yield arm, cell, cells[key]
