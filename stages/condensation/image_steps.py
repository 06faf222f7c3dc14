"""The image steps of a run: what each one draws, whether it has curvature, and how it is matched.

Shapes: K = independent sets, C = classes, N = synthetic images, class after class, image =
(ch, h, w).
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from condensation.blocks import Block, assemble
from condensation.curvature_plan import CurvaturePlan
from condensation.distances import Distance
from condensation.draws import Draws
from condensation.matching import Curvature, Engine, Matched, MatchingStep, make_matching_step
from condensation.networks import Network, Theta


class ImageSteps:
    """How the images are matched in the course of a run.

    Attributes:
        network: That gradients are matched on.
        counts: The number of synthetic images of each class.
        draws: What is drawn.
        blocks: The sets and classes that are matched here.
        outer: Image steps in an iteration, between which the network is trained.
        engine: How.
    """

    def __init__(
        self,
        network: Network,
        counts: Sequence[int],
        draws: Draws,
        blocks: Sequence[Block],
        distance: Distance,
        plan: CurvaturePlan | None,
        real_per_class: int,
        loops: tuple[int, int],
        engine: Engine,
    ) -> None:
        """Plan them; nothing is drawn yet.

        Args:
            network: That gradients are matched on.
            counts: The number of synthetic images of each class.
            draws: What is drawn.
            blocks: The sets and classes that are matched here.
            distance: D.
            plan: The term of curvature; None with order 1.
            real_per_class: Real images of each class in a step.
            loops: Iterations, each with a fresh network, and image steps in each of them.
            engine: How.
        """
        self.network, self.counts = network, counts
        self.draws, self.blocks = draws, blocks
        self.engine = engine
        self._distance, self._plan, self._real_per_class = distance, plan, real_per_class
        self._iterations, self.outer = loops
        self._compiled: dict[tuple[Block, bool], MatchingStep] = {}
        self._weight = torch.zeros((), device=draws.device)

    def match(
        self, images: Tensor, thetas: Sequence[Theta], iteration: int, image_step: int
    ) -> Matched:
        """Match the classes of the blocks; elsewhere the result has zeros.

        Args:
            images: (K, N, ch, h, w), all synthetic images.
            thetas: Parameters of each set's network.
            iteration: From 1.
            image_step: In the iteration, from 0.
        """
        number = (iteration - 1) * self.outer + image_step
        second = None if self._plan is None else self._plan.at(number)
        parts = [
            (block, self._of_block(block, images, thetas, second, number)) for block in self.blocks
        ]
        return assemble(parts, images, self.counts)

    def _of_block(
        self,
        block: Block,
        images: Tensor,
        thetas: Sequence[Theta],
        second: Curvature | None,
        number: int,
    ) -> Matched:
        # The image step of this number, from 0 in the run.
        (sets, classes), draws = block, self.draws
        probes: list[list[Theta]] = [[] for _ in sets]
        if second is not None and self._plan is not None and self._plan.num_probes:
            probes = [draws.probes(thetas[k], k, self._plan.num_probes, number) for k in sets]
        place, following = self._place(number), None
        if number + 1 < self._iterations * self.outer:
            following = ("real", *self._place(number + 1))
        real = [
            draws.real(k, classes, self._real_per_class, "real", *place, following=following)
            for k in sets
        ]
        networks = [draws.frozen(self.network, thetas[k], k, *place) for k in sets]
        step = self._step(block, second, networks)
        own = images[sets.start : sets.stop, block.rows(self.counts)]
        siamese = [draws.siamese(k, classes, number) for k in sets]
        return step(own, real, [thetas[k] for k in sets], probes, siamese)

    def _place(self, number: int) -> tuple[int, int]:
        # The iteration, from 1, and the image step in it, from 0.
        before, image_step = divmod(number, self.outer)
        return before + 1, image_step

    def _step(
        self, block: Block, second: Curvature | None, networks: Sequence[Network]
    ) -> MatchingStep:
        _, classes = block
        counts = self.counts[classes.start : classes.stop]

        def make(curvature: Curvature | None) -> MatchingStep:
            return make_matching_step(
                networks, self._distance, curvature, counts, classes.start, self.engine
            )

        if not self.engine.compiled:
            return make(second)
        # One with and one without curvature, for all weights: it is read each time.
        if second is not None:
            self._weight.fill_(second.weight)
            second = dataclasses.replace(second, weight=self._weight)
        key = block, second is None
        if key not in self._compiled:
            self._compiled[key] = make(second)
        return self._compiled[key]
