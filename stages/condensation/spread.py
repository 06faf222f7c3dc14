"""The spread of scores, and its two sources: the synthetic sets, and the networks on each."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


def standard_deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, to two decimals; None where there is one value."""
    return round(statistics.stdev(values), 2) if len(values) > 1 else None


class Spread(NamedTuple):
    """Standard deviations in the unit of the scores; None where there are too few to tell.

    Attributes:
        between: Of the sets' own means, with the share that the networks' spread has in it taken
            out: what would be left with many networks on each set.
        within: Of the networks on one set, over all sets.
    """

    between: float | None
    within: float | None


def spread_of_sets(scores: Sequence[Sequence[float]]) -> Spread:
    """Separate the spread of the sets from that of the networks.

    One-way analysis of variance with random effects (Searle, Casella and McCulloch, "Variance
    Components", 1992, section 3.2) for sets of equally many networks:

        var(set means) = var_between + var_within / n

    A negative estimate of var_between is 0.

    Args:
        scores: For each set the score of each network trained on it.
    """
    number = len(scores[0])
    within = None
    if number > 1:
        within = statistics.fmean(statistics.variance(values) for values in scores)
    between = None
    if len(scores) > 1 and within is not None:
        of_means = statistics.variance([statistics.fmean(values) for values in scores])
        between = max(0.0, of_means - within / number)
    return Spread(*(None if value is None else round(value**0.5, 2) for value in (between, within)))
