"""How often the images and the network take turns, by the number of images per class."""

from fractions import Fraction

import numpy as np

PUBLISHED_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""ipc -> (outer, inner): image steps for each network, and epochs of training it after each.

Of the code of Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching" (ICLR 2021),
for the layerwise cosine distance.
"""

MOST_EPOCHS = {"squared_euclidean": 10}
"""Distance -> the most epochs of training after an image step that `default_loops` gives.

The published 50 of ten images a class destroy the images with it (results/studies/datasets, on the
validation split). Probably a network that has learned the synthetic images has gradients of them
that are next to zero, and of real images large ones: an angle between them stays bounded, this
distance does not. It is measured at ten images alone, and taken for the numbers about it.
"""


def published_loops(ipc: int | Fraction) -> tuple[int, int]:
    """Return the published (outer, inner) of a number of images per class, or of a mean number.

    Between two published numbers interpolated linearly and rounded; beyond the last the last.
    """
    numbers, pairs = list(PUBLISHED_LOOPS), zip(*PUBLISHED_LOOPS.values(), strict=True)
    at = float(min(ipc, numbers[-1]))
    outer, inner = (round(float(np.interp(at, numbers, values))) for values in pairs)
    return outer, inner


def default_loops(ipc: int | Fraction, distance: str) -> tuple[int, int]:
    """Return the (outer, inner) of a run: the published ones, inner at most `MOST_EPOCHS`.

    Args:
        ipc: Images per class, or their mean number.
        distance: Its name in `DISTANCES`; one without an entry in `MOST_EPOCHS` has no bound.
    """
    outer, inner = published_loops(ipc)
    return outer, min(inner, MOST_EPOCHS.get(distance, inner))
