"""Memory that is freed is kept for the next operator, where the C library can be told so."""

import ctypes
import sys

# Numbers of glibc's <malloc.h>.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
M_ARENA_MAX = -8


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back to the system; elsewhere nothing.

    Every operator on the CPU allocates its result. By default glibc takes large blocks from the
    system and gives them back each time, and the system fills every page with zeros again: a fifth
    to a quarter of a training step of ConvNet. One arena, because those of other threads are
    limited to 64 MiB. To be called before the first tensor is made; no result depends on it.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_ARENA_MAX, 1)
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 64 * 2**20)
