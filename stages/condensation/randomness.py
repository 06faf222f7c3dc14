"""Independent, named streams of random numbers, and deterministic arithmetic."""

import hashlib
import os

import torch


def generator(seed: int, *stream: str | int) -> torch.Generator:
    """Return the generator of one named stream, in the host's memory.

    The stream's name is hashed together with the seed, so that adding a draw to one stream never
    shifts another, and a run that is resumed at iteration `i` draws what it would have drawn.

    Args:
        seed: The seed of the run.
        *stream: The name, for instance `"real", iteration, class_index`.
    """
    name = repr((seed, *stream)).encode()
    # 63 bits: a seed has to fit a signed 64-bit integer.
    number = int.from_bytes(hashlib.sha256(name).digest()[:8], "little") >> 1
    return torch.Generator().manual_seed(number)


def set_determinism() -> None:
    """Make PyTorch use deterministic algorithms only: same seed, same machine, same bytes."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # It would also fill what operators are about to write: a pass through memory for each of them.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
