"""Pieces of work that a CUDA device may do at once: each has its own stream."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from functools import cache

import torch


class Lanes:
    """Streams that begin after what has been asked for so far; elsewhere than on CUDA, none."""

    def __init__(self, device: torch.device, number: int) -> None:
        """So many streams of the device."""
        self._streams = _streams(device, number) if device.type == "cuda" and number > 1 else ()

    @contextmanager
    def at_once(self) -> Generator[None]:
        """What is asked for afterwards begins when all streams are done."""
        if not self._streams:
            yield
            return
        main = torch.cuda.current_stream(self._streams[0].device)
        for stream in self._streams:
            stream.wait_stream(main)
        try:
            yield
        finally:
            for stream in self._streams:
                main.wait_stream(stream)

    def of(self, number: int) -> torch.cuda.StreamContext | nullcontext[None]:
        """Return the context in which the piece of a number is asked for."""
        if not self._streams:
            return nullcontext()
        return torch.cuda.stream(self._streams[number % len(self._streams)])


@cache
def _streams(device: torch.device, number: int) -> tuple[torch.cuda.Stream, ...]:
    return tuple(torch.cuda.Stream(device) for _ in range(number))
