"""Out of memory is met by smaller blocks of work, and one line that says so."""

import re
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from tqdm import tqdm

Result = TypeVar("Result")

# The last is what cuBLAS and cuDNN say.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|(can't|cannot|not) allocate|not enough memory|STATUS_ALLOC_FAILED", re.I
)
_largest: dict[tuple[str, str], int] = {}  # (type of device, what): how many at once
_lock = threading.Lock()  # classes are matched in several threads


def says_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of PyTorch is of memory: that of the CPU has no class of its own."""
    return bool(_OUT_OF_MEMORY.search(str(error)))


def largest_blocks() -> dict[tuple[str, str], int]:
    """Return what was found to fit so far, by type of device and of pieces."""
    return dict(_largest)


def with_less_memory(
    work: Callable[[int], Result], block_size: int, device: str, what: str = "images"
) -> Result:
    """Return `work(block_size)`; where memory runs out, of half of the size, and so on.

    What was found too large once is not tried again on a device of that type.

    Args:
        work: A function of the number of pieces that it takes at once.
        block_size: To begin with.
        device: Type of device.
        what: The pieces, in the plural.

    Raises:
        RuntimeError: One piece at a time is still too much, or something else fails.
    """
    key = device, what
    size = min(block_size, _largest.get(key, block_size))
    while True:
        try:
            return work(size)
        except RuntimeError as error:
            if size == 1 or not says_out_of_memory(error):
                raise
        # Out of the handler, so that what the failed attempt held is free again.
        with _lock:
            if size // 2 < _largest.get(key, size):
                _largest[key] = size // 2
                text = f"out of memory: from now on {size // 2} {what} at a time"
                tqdm.write(text, file=sys.stderr)
            size = _largest[key]
