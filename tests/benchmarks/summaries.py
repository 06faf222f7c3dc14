"""From the accuracies of each seed to figures over seeds, and to differences between ways.

The replicates are the seeds: the networks trained on the images of one are averaged first.
"""

import math
import statistics

import numpy as np

from benchmarks.measure import Record
from benchmarks.ways import REFERENCE, WAYS
from condensation.study_statistics import differences


def summarise(seeds: Record) -> Record:
    """Return the figures of each way, a list for each iteration; None where it is not measured.

    Args:
        seeds: Of each seed what `accuracy.py` measured; the same iterations.

    Returns:
        `iterations`; `mean` and `sd`, of the sample, over `n` seeds. Of the reference, the
        `largest_relative_rounding` of the images of the first iteration, over the seeds. Of the
        others, the `difference` from the reference, seed by seed, the `half_width_95` of Student's
        interval, and the `largest_relative_difference` of the images after some iterations.
    """
    return {name: _of_way(seeds, name) for name in WAYS}


def _of_way(seeds: Record, name: str) -> Record | None:
    records = [record["ways"][name] for record in seeds.values()]
    if None in records:
        return None
    means = _means(seeds, name)
    found: Record = {
        "iterations": [int(i) for i in records[0]["accuracy"]],
        "mean": [round(statistics.fmean(column), 3) for column in means.T.tolist()],
        "sd": [
            round(statistics.stdev(column), 3) if len(column) > 1 else None
            for column in means.T.tolist()
        ],
        "n": len(records),
    }
    if name == REFERENCE:
        return {
            **found,
            "largest_relative_rounding": max(record["relative_rounding"] for record in records),
        }
    pairs = zip(means.T, _means(seeds, REFERENCE).T, strict=True)
    estimates = [differences(ours, theirs) for ours, theirs in pairs]
    largest = {
        i: max(record["relative_difference"][i] for record in records)
        for i in records[0]["relative_difference"]
    }
    return {
        **found,
        "difference": [round(each.mean, 3) for each in estimates],
        "half_width_95": [
            None if math.isnan(each.half_width) else round(each.half_width, 3) for each in estimates
        ],
        "largest_relative_difference": largest,
    }


def _means(seeds: Record, name: str) -> np.ndarray:
    # (seeds, iterations)
    rows = [record["ways"][name]["accuracy"] for record in seeds.values()]
    return np.array([[statistics.fmean(scores) for scores in row.values()] for row in rows])
