"""From the accuracies of a study's arms to means, intervals and paired differences.

The replicates are the independent sets: the networks trained on one set are averaged first. Sets of
different arms with one number come from one seed, so that differences are taken set by set.

Table of scores: the columns network, iteration, set, index, accuracy (percent).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from condensation.spread import spread_of_sets

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean with its confidence interval.

    Attributes:
        mean: Of the replicates.
        half_width: Of the interval of `CONFIDENCE`; NaN where there are fewer than two.
        n: Number of replicates.
    """

    mean: float
    half_width: float
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of independent replicates with Student's confidence interval.

    mean +- t(n - 1) s / sqrt(n), s the sample standard deviation, t the quantile of Student's
    distribution.
    """
    n = len(values)
    if n < 2:
        return Estimate(float(np.mean(values)), math.nan, n)
    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Estimate(float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / n**0.5, n)


def set_means(scores: pd.DataFrame, network: str) -> pd.DataFrame:
    """Return the mean accuracy of one network's copies: a row an iteration, a column a set."""
    rows = scores[scores["network"] == network]
    return rows.pivot_table(index="iteration", columns="set", values="accuracy", aggfunc="mean")


def summary(scores: pd.DataFrame, network: str) -> pd.DataFrame:
    """Return how one network does on one arm's images: a row for each iteration.

    Columns: iteration, accuracy (mean over sets), std (of all networks of all sets), half_width (of
    the confidence interval over sets), networks (all together), sets, between and within (the
    standard deviations of sets and of the networks on one, see `spread_of_sets`).
    """
    means = set_means(scores, network)
    rows = []
    for iteration, of_sets in means.iterrows():
        of_network = scores[scores["network"] == network]
        of_iteration = of_network[of_network["iteration"] == iteration]
        values = of_iteration["accuracy"]
        spread = spread_of_sets([list(each) for _, each in of_iteration.groupby("set")["accuracy"]])
        found = estimate(of_sets.tolist())
        rows.append(
            {
                "iteration": iteration,
                "accuracy": found.mean,
                "std": values.std(),
                "half_width": found.half_width,
                "networks": len(values),
                "sets": found.n,
                "between": spread.between,
                "within": spread.within,
            }
        )
    return pd.DataFrame(rows)


def at_seconds(means: pd.DataFrame, seconds: Sequence[float], times: Sequence[float]) -> np.ndarray:
    """Return the accuracy of each set after some seconds: (times, sets).

    Between two snapshots it is interpolated, and after the last it stays what it was; before the
    first there are no images, and it is NaN.

    Args:
        means: Of `set_means`.
        seconds: When each of its iterations was reached.
        times: In seconds.
    """
    columns = [np.interp(times, seconds, means[index], left=np.nan) for index in means.columns]
    return np.stack(columns, axis=1)


def differences(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """Return the mean difference of pairs (sets,) and its confidence interval."""
    return estimate((ours - theirs).tolist())


def reached(steps: Sequence[float], means: Sequence[float], target: float) -> float | None:
    """Return where a curve first reaches a target, interpolated; None where it does not.

    Args:
        steps: Iterations or seconds, ascending.
        means: The accuracy at each.
        target: In the unit of the accuracies.
    """
    for index, (step, value) in enumerate(zip(steps, means, strict=True)):
        if value >= target:
            if index == 0:
                return float(step)
            before, low = steps[index - 1], means[index - 1]
            return float(before + (step - before) * (target - low) / (value - low))
    return None
