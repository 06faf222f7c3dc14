"""How often the images and the network take turns, by the number of images per class."""

from fractions import Fraction

import numpy as np

PUBLISHED_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""ipc -> (outer, inner): image steps for each network, and epochs of training it after each.

Of the code of Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching" (ICLR 2021).
"""


def default_loops(ipc: int | Fraction) -> tuple[int, int]:
    """Return the (outer, inner) of a number of images per class, or of a mean number.

    Published where it is; between two published numbers interpolated linearly and rounded; beyond
    the last the last.
    """
    numbers, pairs = list(PUBLISHED_LOOPS), zip(*PUBLISHED_LOOPS.values(), strict=True)
    at = float(min(ipc, numbers[-1]))
    outer, inner = (round(float(np.interp(at, numbers, values))) for values in pairs)
    return outer, inner
