"""Which image steps of a run have the term of order 2, and with which weight."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from condensation.matching import Curvature


@dataclass(frozen=True)
class CurvaturePlan:
    """The term of order 2 in the course of a run of order 2.

    Attributes:
        term: With its full weight.
        schedule: The factor of the weight, of the part of the run that is done.
        every: Image steps from one with the term to the next, from 1.
        until: The image step from which on there is none.
        steps: Image steps of the run.
    """

    term: Curvature
    schedule: Callable[[float], float]
    every: int
    until: int
    steps: int

    def at(self, step: int) -> Curvature | None:
        """Return the term of an image step, counted from 0, or None where none is due."""
        if step >= self.until or step % self.every:
            return None
        factor = self.schedule(step / self.steps)
        return dataclasses.replace(self.term, weight=self.term.weight * factor)
