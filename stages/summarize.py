"""What a study has measured -> its tables, figures and metrics, beside its cells.

python stages/summarize.py results/studies/<study>

Arms that have not been measured are left out, and named in tables.md.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from condensation.documents import to_markdown
from condensation.figure_style import save
from condensation.files import write_bytes, write_json
from condensation.study_comparison import Cells, compare, summarise, times_to_targets
from condensation.study_plots import (
    accuracy_curves,
    arms_images,
    curvature_terms,
    final_accuracies,
    losses,
    transfer,
)
from condensation.study_records import read_cell
from condensation.study_settings import Study, load_study
from condensation.study_tables import (
    facet_title,
    published_figure,
    study_blocks,
    transfer_table,
)

DPI = 130
DECIMALS = 3
"""Of the numbers in the tables of values."""

EXACT = 9
"""Decimals without the last bits of a sum: a mean of 82.45 would else be 82.4 for readers."""


def main() -> None:
    """Summarise one study.

    Raises:
        ValueError: None of its arms has been measured.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="its folder")
    folder: Path = parser.parse_args().study
    study = load_study(folder)
    cells = read_cells(study)
    if not cells:
        raise ValueError(f"{folder}: no arm has been measured")
    measured = {
        "summary": summarise(study, cells),
        "paired": compare(study, cells),
        "targets": times_to_targets(study, cells),
    }
    tables = {name: table.round(EXACT) for name, table in measured.items()}
    for name, table in tables.items():
        text = table.round(DECIMALS).to_csv(index=False)
        write_bytes(folder / f"{name}.csv", text.encode())
    accuracies = tables["summary"]
    for name, figure in figures(study, cells, accuracies).items():
        save(figure, folder / f"figures/{name}.png", DPI)
    blocks = study_blocks(study, cells, accuracies, tables["paired"], tables["targets"])
    write_bytes(folder / "tables.md", to_markdown(study.title, blocks, folder).encode())
    write_json(folder / "metrics.json", {folder.name: metrics(cells, accuracies)})
    print(f"summarize: {folder.name}: {len(cells)} of {len(study.arms)} arms")


def read_cells(study: Study) -> Cells:
    """Return the arms that have been measured; without seconds where the panel is not timed."""
    cells = {}
    for key, arm in study.arms.items():
        cell = read_cell(study.folder / f"cells/{key}")
        if cell is not None:
            untimed = arm.panel in study.untimed
            seconds = cell.seconds.assign(seconds=math.nan) if untimed else cell.seconds
            cells[key] = replace(cell, seconds=seconds)
    return cells


def figures(study: Study, cells: Cells, accuracies: pd.DataFrame) -> dict[str, Figure]:
    """Draw whatever the study has something to show for."""
    facets = {
        facet_title(study, str(panel), str(network), accuracies): {
            str(label): _with_published(study, str(label), str(network), table)
            for label, table in rows.groupby("label", sort=False)
        }
        for (panel, network), rows in accuracies.groupby(["panel", "network"], sort=False)
    }
    drawn = {"final": final_accuracies(facets)}
    if accuracies["iteration"].nunique() > 1:
        drawn["accuracy"] = accuracy_curves(facets, "iteration")
        timed = {
            title: tables
            for title, tables in facets.items()
            if any(table["seconds"].notna().any() for table in tables.values())
        }
        if timed:
            drawn["seconds"] = accuracy_curves(timed, "seconds")
    of_losses = {}
    for panel, title in study.panels.items():
        arms = [arm for arm in study.of_panel(panel) if arm.key in cells]
        if arms:
            of_losses[title] = {arm.label: cells[arm.key].loss for arm in arms}
            images = {arm.label: cells[arm.key].images for arm in arms}
            drawn[f"images-{panel}"] = arms_images(images, ("start", "half way", "end"))
    drawn["loss"] = losses(of_losses)
    curvature = {
        study.panels[panel]: {
            arm.label: cells[arm.key].curvature
            for arm in study.of_panel(panel)
            if arm.key in cells and not cells[arm.key].curvature.empty
        }
        for panel in study.panels
    }
    if any(curvature.values()):
        drawn["curvature"] = curvature_terms({k: v for k, v in curvature.items() if v})
    if study.published and accuracies["network"].nunique() > 1:
        drawn["transfer"] = transfer(transfer_table(study, accuracies))
    return drawn


def _with_published(study: Study, label: str, network: str, table: pd.DataFrame) -> pd.DataFrame:
    published = published_figure(study, label, network)
    return table if published is None else table.assign(published=published[0])


def metrics(cells: Cells, accuracies: pd.DataFrame) -> dict[str, Any]:
    """Return the final accuracy of each arm and network, with its interval, n and protocol."""
    found: dict[str, Any] = {}
    for (arm, network), rows in accuracies.groupby(["arm", "network"], sort=False):
        last = rows.iloc[-1]
        width = float(last["half_width"])
        found.setdefault(str(arm), {})[str(network)] = {
            "accuracy": round(float(last["accuracy"]), 2),
            "half_width": None if math.isnan(width) else round(width, 2),
            "n": int(last["networks"]),
            "sets": int(last["sets"]),
            "protocol": cells[str(arm)].record["protocols"][network],
        }
    return found


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"summarize: {error}")
