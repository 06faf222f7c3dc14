"""What becomes of memory that is freed, where the C library can be told."""

import ctypes
import sys
from collections.abc import Mapping

# Numbers of glibc's <malloc.h>.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
M_ARENA_MAX = -8


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back to the system; elsewhere nothing.

    Every operator on the CPU allocates its result. By default glibc takes large blocks from the
    system and gives them back each time, and the system fills every page with zeros again: a fifth
    to a quarter of a training step of ConvNet. One arena, because those of other threads are
    limited to 64 MiB. To be called before the work begins; no result depends on it.
    """
    _tell(
        {
            M_ARENA_MAX: 1,
            M_MMAP_MAX: 0,
            M_TRIM_THRESHOLD: 2**31 - 1,
            M_TOP_PAD: 64 * 2**20,
        }
    )


def give_back_freed_memory() -> None:
    """Tell glibc to give freed memory of a MiB and more back to the system; elsewhere nothing.

    By default blocks as large as one that was freed before are kept, and small ones that are in use
    then lie between them: one class of images after another, that came to 1.6 GiB.
    """
    _tell({M_MMAP_THRESHOLD: 2**20})


def _tell(options: Mapping[int, int]) -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, value in options.items():
        mallopt(option, value)
