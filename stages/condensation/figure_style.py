"""The look of every figure, in one place, and writing it to a file."""

import io
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import seaborn
from matplotlib.figure import Figure

from condensation.files import write_bytes

WIDTH = 9.0  # inches: a README shows about 900 pixels, 10 points are then about 14 of them

# Okabe & Ito's palette, which the colour-blind can tell apart; its yellow is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#222222"
GREY = "#6E6E6E"
PALE = "#E3E3E3"


@contextmanager
def style() -> Generator[None]:
    """The one place where the look is set. Own settings of the user (matplotlibrc) are left out."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            seaborn.axes_style("whitegrid")
            | {
                "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: same bytes everywhere
                "font.size": 10,
                "axes.labelsize": 10,
                "axes.titlesize": 10.5,
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.edgecolor": GREY,
                "axes.grid.which": "major",
                "grid.color": PALE,
                "grid.linewidth": 0.8,
                "figure.constrained_layout.w_pad": 0.08,
                "lines.linewidth": 1.8,
                "lines.markersize": 5.5,
                "legend.frameon": False,
                "legend.fontsize": 9.5,
                "text.color": INK,
                "axes.labelcolor": INK,
                "xtick.color": INK,
                "ytick.color": INK,
                "xtick.labelsize": 9.5,
                "ytick.labelsize": 9.5,
            }
        )
        yield


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as PNG, atomically; the same figure gives the same bytes.

    Args:
        figure: What a function of `plots` or `image_grids` returned.
        path: Where to.
        dpi: Dots per inch.

    Raises:
        OSError: The file cannot be written.
    """
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
