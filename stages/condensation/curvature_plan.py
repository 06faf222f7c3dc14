"""Which image steps of a run have the term of order 2, with which weight and how many probes."""

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
        num_probes: Random vectors of a step; 0: it is probed with its real gradient.
    """

    term: Curvature
    schedule: Callable[[float], float]
    every: int
    until: int
    steps: int
    num_probes: int = 0

    def in_one_pass(self, num_real: int) -> bool:
        """Whether g_T of so many real images can come in the pass of the products in each step.

        See `Curvature.in_one_pass`.
        """
        always = self.every == 1 and self.until >= self.steps
        of_all = self.term.layers is None
        return always and self.term.in_one_pass(num_real, self.num_probes > 0, of_all)

    def at(self, step: int) -> Curvature | None:
        """Return the term of an image step, counted from 0, or None where none is due."""
        if step >= self.until or step % self.every:
            return None
        factor = self.schedule(step / self.steps)
        return dataclasses.replace(self.term, weight=self.term.weight * factor)
