"""Out of memory is met by smaller blocks of images, and one line that says so."""

import re
import sys
from collections.abc import Callable
from typing import TypeVar

from tqdm import tqdm

Result = TypeVar("Result")

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate|not enough memory", re.I)
_largest: dict[str, int] = {}


def with_less_memory(work: Callable[[int], Result], block_size: int, device: str) -> Result:
    """Return `work(block_size)`; where memory runs out, of half of the size, and so on.

    What was found too large once is not tried again on a device of that type.

    Args:
        work: A function of the number of images that it takes at once.
        block_size: To begin with.
        device: Type of device.

    Raises:
        RuntimeError: One image at a time is still too much, or something else fails.
    """
    size = min(block_size, _largest.get(device, block_size))
    while True:
        try:
            return work(size)
        except (
            RuntimeError
        ) as error:  # torch.OutOfMemoryError is one, the CPU's is no more than one
            if size == 1 or not _OUT_OF_MEMORY.search(str(error)):
                raise
        # Out of the handler, so that what the failed attempt held is free again.
        size //= 2
        _largest[device] = size
        tqdm.write(f"out of memory: from now on {size} images at a time", file=sys.stderr)
