"""The search for an arm's settings: grids one after another, extended while the best is at an edge.

Every arm gets the same rule: all values of a grid are tried; while the best lies at an edge, the
grid is extended there by its own factor, a given number of times at most. Of several grids the
first is searched with the middle values of the others, the next with the best of those before it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from condensation.study_settings import Grid

Values = Mapping[str, float]


class Score(NamedTuple):
    """What a trial came to.

    Attributes:
        accuracy: Mean over the sets, in percent; None where the images or a network diverged.
        std: Sample standard deviation of the sets; None where there is one.
        n: Number of sets.
        seconds: Of condensation and evaluation.
    """

    accuracy: float | None
    std: float | None
    n: int
    seconds: float


class Trial(NamedTuple):
    """One point that was tried."""

    values: Values
    score: Score


class Search(NamedTuple):
    """What a search found.

    Attributes:
        trials: Every point, in the order of trying.
        chosen: The best one.
        at_edge: The keys whose best value is at the edge of what was tried.
    """

    trials: list[Trial]
    chosen: Values
    at_edge: list[str]


def search(grid: Grid, extensions: int, attempt: Callable[[Values], Score]) -> Search:
    """Return the best values of a grid.

    Args:
        grid: What is tried.
        extensions: Of each key's grid, at most.
        attempt: Scores one point. No point is tried twice.

    Raises:
        ValueError: Every value of a key diverges.
    """
    trials: list[Trial] = []
    chosen = {key: values[len(values) // 2] for key, values in grid.items()}
    at_edge = []

    def accuracy(values: Values) -> float:
        known = [trial.score for trial in trials if trial.values == values]
        score = known[0] if known else attempt(values)
        if not known:
            trials.append(Trial(values, score))
        return -math.inf if score.accuracy is None else score.accuracy

    for key, given in grid.items():
        tried = {value: accuracy({**chosen, key: value}) for value in given}
        for _ in range(extensions):
            further = beyond(sorted(tried), _best(tried))
            if further is None:
                break
            tried[further] = accuracy({**chosen, key: further})
        best = _best(tried)
        if tried[best] == -math.inf:
            raise ValueError(f"{key}: every value diverges: {', '.join(map(str, sorted(tried)))}")
        if beyond(sorted(tried), best) is not None:
            at_edge.append(key)
        chosen[key] = best
    return Search(trials, chosen, at_edge)


def beyond(tried: Sequence[float], best: float) -> float | None:
    """Return the value that extends a grid beyond its best one; None where that is inside.

    The grid goes on by the factor of its last two values there, to two digits.
    """
    if len(tried) < 2 or tried[0] < best < tried[-1]:
        return None
    edge, inner = tried[:2] if best == tried[0] else tried[:-3:-1]
    return float(f"{edge * edge / inner:.2g}")


def _best(tried: Mapping[float, float]) -> float:
    # The smallest of equals: which one must not depend on the order of trying.
    return max(sorted(tried), key=lambda value: tried[value])
