"""The look of every figure, in one place, and writing it to a file."""

import io
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import seaborn
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from condensation.files import write_bytes

WIDTH = 9.0  # inches: a README shows about 900 pixels, 10 points are then about 14 of them

# Okabe & Ito's palette, which the colour-blind can tell apart; its yellow is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # of networks, beside their colours
INK = "#222222"
GREY = "#6E6E6E"
PALE = "#E3E3E3"


FONT = "DejaVu Sans"  # comes with matplotlib: same bytes everywhere
OTHER_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Hiragino Sans", "PingFang SC"),
    *("Yu Gothic", "Malgun Gothic", "Microsoft YaHei", "WenQuanYi Zen Hei", "Noto Sans"),
    *("FreeSans", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Bengali", "Noto Sans Tamil"),
)
"""For signs that `FONT` lacks, as in names of classes, where the machine has them."""


@cache
def fonts() -> tuple[str, ...]:
    """Return the fonts that a sign is looked for in, the first first."""
    there = set(font_manager.get_font_names())
    return FONT, *(name for name in OTHER_FONTS if name in there)


def undrawable(texts: Iterable[str]) -> str:
    """Return the signs of some texts that no font here has: boxes are drawn for them."""
    faces = [font_manager.get_font(font_manager.findfont(name)) for name in fonts()]
    signs = sorted({sign for text in texts for sign in text})
    return "".join(s for s in signs if not any(face.get_char_index(ord(s)) for face in faces))


@contextmanager
def style() -> Generator[None]:
    """The one place where the look is set. Own settings of the user (matplotlibrc) are left out."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # `undrawable` tells of them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            seaborn.axes_style("whitegrid")
            | {
                "font.family": fonts(),
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
                "image.composite_image": False,  # a vector file keeps the pixels of each image
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


def plain(text: str) -> str:
    """Return a name so that it is drawn as it is: what stands between two $ is no formula."""
    return text.replace("$", r"\$")


PALETTE_ERROR = 0.25
"""Of 255: the mean error up to which a PNG is written with a palette, at a third of the size."""


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as PNG or PDF, atomically; the same figure gives the same bytes.

    Args:
        figure: What a function of a module of figures returned.
        path: Where to; its suffix, .png or .pdf, says what is written.
        dpi: Dots per inch of a PNG.

    Raises:
        OSError: The file cannot be written.
    """
    buffer = io.BytesIO()
    with style():
        if path.suffix == ".pdf":
            # No program and no date: the file depends on what it shows alone.
            nothing = {"Creator": None, "Producer": None, "CreationDate": None}
            figure.savefig(buffer, format="pdf", metadata=nothing)
            write_bytes(path, buffer.getvalue())
            return
        figure.savefig(buffer, format="png", dpi=dpi)
    with Image.open(buffer) as drawn:
        write_bytes(path, _encode(drawn.convert("RGB"), dpi))


def _encode(pixels: Image.Image, dpi: int) -> bytes:
    """Return a PNG file, with a palette of 256 colours where that shows no difference.

    A grid of colour photographs needs more: it keeps its true colours.
    """
    reduced = pixels.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    error = np.abs(np.asarray(pixels, int) - np.asarray(reduced.convert("RGB"), int)).mean()
    buffer = io.BytesIO()
    chosen = reduced if error <= PALETTE_ERROR else pixels
    chosen.save(buffer, format="PNG", optimize=True, dpi=(dpi, dpi))
    return buffer.getvalue()
