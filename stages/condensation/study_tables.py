"""The tables of a study for its readers, as blocks of a document."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from condensation.documents import Block, Heading, Paragraph, Table
from condensation.study_comparison import Cells
from condensation.study_records import describe, is_at_edge
from condensation.study_settings import Study

KINDS = {
    "explosion": "the matching loss explodes",
    "far": "pixels far from those of real images",
    "no_gradient": "no gradient with respect to the images",
}
"""What the kinds of `health.Warned` are."""


def study_blocks(
    study: Study,
    cells: Cells,
    accuracies: pd.DataFrame,
    compared: pd.DataFrame,
    times: pd.DataFrame,
) -> list[Block]:
    """Return the tables of each panel and network, and what has not been measured.

    Args:
        study: The study.
        cells: What was measured.
        accuracies: Of `summarise`.
        compared: Of `compare`.
        times: Of `times_to_targets`.
    """
    blocks: list[Block] = [Paragraph(_measured_text(study, cells))]
    if study.published and accuracies["network"].nunique() > 1:
        blocks += _transfer_blocks(study, accuracies)
    for (panel, network), rows in accuracies.groupby(["panel", "network"], sort=False):
        blocks.append(Heading(facet_title(study, str(panel), str(network), accuracies)))
        blocks.append(_accuracy_table(study, cells, rows))
        of_facet = compared[(compared["panel"] == panel) & (compared["network"] == network)]
        for by, what in (("iteration", "iterations"), ("seconds", "seconds")):
            part = of_facet[of_facet["by"] == by]
            if not part.empty:
                blocks.append(
                    Paragraph(
                        f"Difference from {study.reference} in percentage points, set by set, at "
                        f"equal {what}"
                        + ("" if by == "iteration" else " (those of the reference; interpolated)")
                        + ", with its 95 % interval:"
                    )
                )
                blocks.append(_difference_table(part))
        part = of_facet[of_facet["by"] == "last"]
        if not part.empty:
            blocks.append(Paragraph("The same, each at its own last iteration:"))
            blocks.append(_last_table(part))
        part = times[(times["panel"] == panel) & (times["network"] == network)]
        if not part.empty:
            blocks.append(
                Paragraph(
                    "Iterations"
                    + ("" if panel in study.untimed else ", and seconds of one set,")
                    + " to a mean accuracy of "
                    + "; ".join(f"{target:g} %" for target in dict.fromkeys(part["target"]))
                    + " (between two that were evaluated, interpolated):"
                )
            )
            blocks.append(_target_table(part))
    return blocks + _warning_blocks(cells)


def facet_title(study: Study, panel: str, network: str, accuracies: pd.DataFrame) -> str:
    """Return what a panel and the network that was trained are called together."""
    title = study.panels[panel]
    several = accuracies.groupby("panel")["network"].nunique().max() > 1
    return f"{title}, {network} trained" if several else title


def _measured_text(study: Study, cells: Cells) -> str:
    missing = [key for key in study.arms if key not in cells]
    devices = sorted({cell.record["device"] for cell in cells.values()})
    commits = sorted({str(cell.record["commit"])[:7] for cell in cells.values()})
    protocols = sorted({p for cell in cells.values() for p in cell.record["protocols"].values()})
    text = (
        f"{len(cells)} of {len(study.arms)} arms measured ({'; '.join(devices)}; commit "
        f"{', '.join(commits)}; evaluation {', '.join(protocols)})."
    )
    if missing:
        text += f" Not measured: {', '.join(missing)}."
    edges = [key for key in cells if is_at_edge(study.folder / f"tuning/{key}.csv")]
    if edges:
        text += f" Chosen at the edge of what was tried: {', '.join(edges)}."
    changed = [key for key, cell in cells.items() if cell.record["modified"]]
    if changed:
        text += f" With changes beside the commit: {', '.join(changed)}."
    return text


def _accuracy_table(study: Study, cells: Cells, rows: pd.DataFrame) -> Table:
    iterations = sorted({*rows["iteration"]})
    body = []
    for arm, of_arm in rows.groupby("arm", sort=False):
        found = of_arm.set_index("iteration")
        last = found.iloc[-1]
        cells_of_row = [
            interval(found.loc[i, "accuracy"], found.loc[i, "half_width"])
            if i in found.index
            else ""
            for i in iterations
        ]
        body.append(
            [
                str(last["label"]),
                describe(cells[str(arm)].record["chosen"]),
                *cells_of_row,
                f"{last['std']:.1f}",
                f"{last['networks']:.0f} ({last['sets']:.0f})",
                "" if math.isnan(last["seconds"]) else f"{last['seconds']:.1f}",
            ]
        )
        if study.published:
            published = published_figure(study, str(last["label"]), str(last["network"]))
            body[-1].append("{} ± {}".format(*published) if published else "")
    header = ["arm", "tuned", *map(str, iterations), "std", "networks (sets) at the last"]
    header.append("seconds")
    return Table(header + ["published"] * bool(study.published), body)


def _difference_table(rows: pd.DataFrame) -> Table:
    points = sorted(rows["at"].unique())
    body = []
    for _, of_arm in rows.groupby("arm", sort=False):
        found = of_arm.set_index("at")
        values = [
            interval(found.loc[at, "difference"], found.loc[at, "half_width"], "+.1f")
            if at in found.index
            else ""
            for at in points
        ]
        body.append([str(of_arm["label"].iloc[0]), *values])
    return Table(["arm", *(f"{point:.4g}" for point in points)], body)


def _last_table(rows: pd.DataFrame) -> Table:
    body = [
        [
            str(row["label"]),
            f"{row['at']:.0f}",
            interval(row["difference"], row["half_width"], "+.1f"),
        ]
        for _, row in rows.iterrows()
    ]
    return Table(["arm", "its last iteration", "difference"], body)


def _transfer_blocks(study: Study, accuracies: pd.DataFrame) -> list[Block]:
    # Condensed on a row's network, trained on a column's: ours, and below it what was published.
    last = accuracies.groupby(["arm", "network"], sort=False).tail(1)
    trained = list(dict.fromkeys(last["network"]))
    body = []
    for label, rows in last.groupby("label", sort=False):
        found = rows.set_index("network")
        body.append([str(label), *(_with_spread(found.loc[network]) for network in trained)])
        published = study.published.get(str(label), {})
        if published:
            body.append(
                [
                    f"{label}, published",
                    *(
                        "{:.1f} ± {:.1f}".format(*published[name]) if name in published else ""
                        for name in trained
                    ),
                ]
            )
    text = (
        "Accuracy (%) and standard deviation over all networks, at the last iteration; a row for "
        "each network that was condensed on, a column for each that was trained."
    )
    title = "Condensed on one network, trained on another"
    return [Heading(title), Paragraph(text), Table(["condensed on", *trained], body)]


def _with_spread(row: pd.Series) -> str:
    of_sets = "{networks:.0f} on {sets:.0f} sets".format(**row)
    text = "{accuracy:.1f} ± {std:.1f} (n = ".format(**row) + of_sets
    if not math.isnan(row["between"]):
        text += "; {between:.1f} between sets, {within:.1f} within one".format(**row)
    return text + ")"


def _warning_blocks(cells: Cells) -> list[Block]:
    # What `condense` warned of: a row for each arm and kind.
    rows = []
    warned = {arm: cell.warnings for arm, cell in cells.items() if not cell.warnings.empty}
    for arm, warnings in warned.items():
        for kind, of_kind in warnings.groupby("kind", sort=False):
            classes = of_kind["classes"].dropna().str.split(", ").explode().nunique()
            shown = str(classes) if classes else ""
            rows.append([arm, KINDS[str(kind)], shown, str(of_kind["iteration"].min())])
    text = "In full in cells/<arm>/warnings.csv, for arms that were measured since these are kept."
    table = Table(["arm", "what", "classes", "from iteration"], rows)
    return [Heading("Warnings of `condense`"), Paragraph(text), table] if rows else []


def _target_table(rows: pd.DataFrame) -> Table:
    targets = list(dict.fromkeys(rows["target"]))
    body = []
    for label, of_arm in rows.groupby("label", sort=False):
        found = of_arm.set_index("target")
        values = []
        for target in targets:
            steps, seconds = found.loc[target, ["iterations", "seconds"]]
            time = "" if pd.isna(seconds) else f" ({seconds:.1f} s)"
            values.append("never" if pd.isna(steps) else f"{steps:.0f}{time}")
        body.append([str(label), *values])
    return Table(["arm", *(f"{target:g} %" for target in targets)], body)


def interval(mean: float, half_width: float, form: str = ".1f") -> str:
    """Return a mean and the half width of its interval, where there is one."""
    return f"{mean:{form}}" + ("" if math.isnan(half_width) else f" ± {half_width:.1f}")


def published_figure(study: Study, label: str, network: str) -> Sequence[float] | None:
    """Return the published mean and standard deviation beside an arm's, where there is one."""
    return study.published.get(label, {}).get(network)


def transfer_table(study: Study, accuracies: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    """Return the final accuracies by condensing and by trained network, ours and the published.

    Columns: network (condensed on), evaluated, accuracy, std.
    """
    last = accuracies.groupby(["arm", "network"], sort=False).tail(1)
    ours = last.rename(columns={"network": "evaluated"}).rename(columns={"label": "network"})
    columns = ["network", "evaluated", "accuracy", "std"]
    tables = {"here": ours[columns]}
    rows: list[Sequence[object]] = [
        (label, network, mean, std)
        for label, of_label in study.published.items()
        for network, (mean, std) in of_label.items()
    ]
    if rows:
        tables["published"] = pd.DataFrame(rows, columns=columns)
    return tables
