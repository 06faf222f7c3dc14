"""How the synthetic images change, as a GIF.

Shapes: S = synthetic images of a class, image = (ch, h, w). Pixels are in [0, 1].
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from condensation.figure_style import style
from condensation.image_grids import Images, snapshot_strip

FRAME_MILLISECONDS = 160
FIRST_MILLISECONDS = 1000
LAST_MILLISECONDS = 2500
DPI = 80  # of the frames: a GIF is looked at on a screen
COLOURS = {1: 32, 3: 256}
"""Channels -> colours of a frame."""


def animation(frames: Mapping[int, Images], class_names: Sequence[str]) -> bytes:
    """Return a GIF that runs for ever: a frame for each iteration, the first image of each class.

    The same images give the same bytes.

    Args:
        frames: Iteration -> pixels of each class (S, ch, h, w), ch 1 (grey) or 3 (RGB).
        class_names: C names.
    """
    iterations = sorted(frames)
    width = len(str(iterations[-1]))
    drawn = [_draw(frames[i], class_names, f"iteration {i:{width}d}") for i in iterations]
    durations = [FRAME_MILLISECONDS] * len(drawn)
    durations[0], durations[-1] = FIRST_MILLISECONDS, LAST_MILLISECONDS
    buffer = io.BytesIO()
    first, *others = drawn
    first.save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=others,
        duration=durations,
        loop=0,
        optimize=False,
    )
    return buffer.getvalue()


def _draw(pixels: Images, class_names: Sequence[str], label: str) -> Image.Image:
    """Return one frame, with a palette of its own."""
    figure = snapshot_strip({0: pixels}, class_names, labels=[label])
    with style():
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(DPI)
        canvas.draw()
        frame = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    colours = COLOURS[pixels[0].shape[1]]
    return frame.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
