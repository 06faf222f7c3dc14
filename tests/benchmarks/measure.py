"""Measuring: seconds with their spread, peak memory, work, and what the device can do at most."""

import re
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from condensation import matching, recording

Run = Callable[[], float | None]
"""What is measured; it may return the seconds that count, if not all of its own do."""

Record = dict[str, Any]
"""What becomes JSON."""

CEILING_SIZE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product is the ceiling, by type of device."""

CEILINGS = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "tf32", "bfloat16")}
"""What the product is calculated in, by type of device. TF32 is float32 whose factors are rounded
to 10 bits: PyTorch's default on CUDA for convolutions, and not for products."""

COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Bytes of the tensor whose copy is the ceiling: more than any cache holds."""


class Effort(NamedTuple):
    """How much is measured of a case: rounds until they took `seconds`, within the two numbers."""

    seconds: float
    fewest: int
    most: int


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Run, device: torch.device) -> float:
    """Return the seconds of one run."""
    synchronise(device)
    start = time.perf_counter()
    seconds = run()
    synchronise(device)
    return time.perf_counter() - start if seconds is None else seconds


def rounded(value: float) -> float:
    """Return a figure with four digits."""
    return float(f"{value:.4g}")


def spread(values: list[float]) -> Record:
    """Return the median, the quartiles and the number of some values."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    figures = {"median": middle, "lower_quartile": low, "upper_quartile": high}
    return {**{name: rounded(value) for name, value in figures.items()}, "n": len(values)}


def interleave(timers: Mapping[str, Callable[[], float]], effort: Effort) -> dict[str, Record]:
    """Time several things in turn, so that what slows the machine down slows all of them.

    Args:
        timers: Each runs its thing once and returns the seconds.
        effort: How often.

    Returns:
        Of each: `first_call`, seconds of the first run, which is left out of `seconds`.
    """
    first = {name: timer() for name, timer in timers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    begin = time.perf_counter()
    for number in range(effort.most):
        if number >= effort.fewest and time.perf_counter() - begin > effort.seconds:
            break
        for name, timer in timers.items():
            seconds[name].append(timer())
    return {
        name: {"first_call": rounded(first[name]), "seconds": spread(seconds[name])}
        for name in timers
    }


class Peak:
    """By how many bytes a process raises the amount of memory in use, at most, from now on.

    On the CPU that is the memory which is resident, as Linux keeps account of it. (What
    `resource.getrusage` tells begins with what the parent had before the process became another.)
    On CUDA it is that of tensors, which leaves out what a CUDA graph keeps for its own.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin."""
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the largest amount is that of now
            self._before = self._largest()

    def bytes(self) -> int:
        """Return it."""
        return self._largest() - self._before

    def reserved_bytes(self) -> int | None:
        """Return what PyTorch has taken from the device at most: also what graphs and caches keep.

        None on the CPU.
        """
        cuda = self._device.type == "cuda"
        return torch.cuda.max_memory_reserved(self._device) if cuda else None

    def _largest(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        (kibibytes,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(kibibytes) * 1024


class _Work(TorchDispatchMode):
    """Adds up what the operators calculate, read and write; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count its operations, and its operands and results, each once."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flop += formula(*args, **kwargs, out_val=result)
        if not func.is_view and func not in _FREE:
            for value in tree_leaves((args, kwargs, result)):
                if isinstance(value, Tensor):
                    self.bytes += value.numel() * value.element_size()
        return result


_FREE = {
    torch.ops.aten.detach.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
}


def _in_turn(
    function: Callable[[Any], Any], items: Iterable[Any], *_: object, **__: object
) -> list[Any]:
    return [function(item) for item in items]


def not_recorded(_: object) -> bool:
    """No arguments are for a CUDA graph."""
    return False


def work(run: Run) -> Record:
    """Return the floating-point operations and the operators' bytes of a run.

    Operations: of products and convolutions, by the formulas of `torch.utils.flop_counter`: of each
    convolution those of the direct one, more than Winograd's takes. Bytes: what the operators would
    read and write if each went to memory by itself, more than is moved where a cache holds what
    goes from one to the next; the passes of compiled kernels are not among them.
    """
    # An operator is seen by the thread that counts alone, and not within a compiled graph.
    in_turn = patch.object(matching, "parallel_map", _in_turn)
    at_once = patch.object(recording, "recordable", not_recorded)
    with torch.compiler.set_stance("force_eager"), in_turn, at_once, _Work() as counted:
        run()
    return {"flop": counted.flop, "bytes": counted.bytes}


def ceilings(device: torch.device, effort: Effort) -> Record:
    """Return the most of the device: FLOP/s of matrix products (`CEILINGS`), bytes/s of a copy."""
    size, copied = CEILING_SIZE[device.type], COPIED_BYTES[device.type]
    found: Record = {"matmul_size": size, "copied_bytes": copied}
    for name in CEILINGS[device.type]:
        dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        multiply = partial(_multiply, a, b, torch.empty_like(a))
        with float32_products("high" if name == "tf32" else "highest"):
            seconds = interleave({"": partial(timed, multiply, device)}, effort)[""]["seconds"]
        found[f"matmul_{name}_flop_per_second"] = rates(2 * size**3, seconds)
    source = torch.ones(copied // 4, device=device)
    copy = partial(_copy, torch.empty_like(source), source)
    seconds = interleave({"": partial(timed, copy, device)}, effort)[""]["seconds"]
    return {**found, "copy_bytes_per_second": rates(2 * copied, seconds)}


@contextmanager
def float32_products(precision: str) -> Generator[None]:
    """Calculate products of float32 in this precision of `torch.set_float32_matmul_precision`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    torch.mm(a, b, out=out)


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def rates(amount: float, seconds: Record) -> Record:
    """Return an amount a second, with the spread of the seconds."""
    return {
        "median": rounded(amount / seconds["median"]),
        "lower_quartile": rounded(amount / seconds["upper_quartile"]),
        "upper_quartile": rounded(amount / seconds["lower_quartile"]),
        "n": seconds["n"],
    }
