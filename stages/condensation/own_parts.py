"""What the readers of one's own images have in common: what they return, and how they say things.

Shapes: N = number of images, C = classes, image = (ch, h, w).
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from condensation.errors import one_line

_UNFIT = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode's control characters, bytes that are no text, and what ends a line."""


class OwnImages(NamedTuple):
    """What was read of one's own images: the training part, and the test part if there is one.

    Attributes:
        images: Of each part, (N, ch, h, w) uint8; of no use if there are problems.
        labels: Of each part, (N,) int64, of all that it holds, readable or not; of none where they
            are not known.
        class_names: C names.
        problems: Why they cannot be used, a line each.
    """

    images: list[Tensor]
    labels: list[Tensor]
    class_names: tuple[str, ...]
    problems: list[str]


def class_name(text: str) -> str:
    """Return a name as a class is known by: an accented letter may be one character or two (NFC).

    Archives of a Mac have two, keyboards give one; they look the same.
    """
    return unicodedata.normalize("NFC", text)


def name_problems(names: Sequence[str]) -> list[str]:
    """Say which names of classes cannot be written into tables, figures and files."""
    return [
        f"class {ascii(name)}: its name has to be text (UTF-8), neither empty nor with control "
        "characters"
        for name in names
        if not name.strip() or _UNFIT & {*map(unicodedata.category, name)}
    ]


def printable(text: str) -> str:
    """Return a text in which what no terminal shows is written as in Python."""
    return "".join(
        ascii(each)[1:-1] if unicodedata.category(each) in _UNFIT else each for each in text
    )


def sizes_text(sizes: Sequence[int]) -> str:
    """Write the sizes of an array: `10 x 8 x 8`."""
    return " x ".join(map(str, sizes)) or "one number"


def reason(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return one_line(error) or type(error).__name__
