"""The compiled passes of `kernels.cpp`: built by the C++ compiler of the machine, called by name.

Nothing is built until `build` is called; without it, or without a compiler, everything is computed
by PyTorch's operators.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

COMPILERS = ("c++", "g++", "clang++")
"""The first that is there is used, or the one that the environment variable CXX names."""

FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC")
"""C++17, as its vectors hold numbers that have to lie at multiples of 64 bytes."""

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
"""What is computed in."""

LOWER = torch.bfloat16
"""What products of matrices may take and give instead, where the rest is float32."""

VECTOR_BYTES = 64
"""Channels are computed so many bytes at a time: their number has to be a multiple."""

MOST_THREADS = 3
"""A kernel runs on one core, as fast as PyTorch's operators on three; a thread that has more cores
for its operators does without."""

_library: list[ctypes.CDLL] = []


def build() -> str:
    """Compile the kernels for this processor and put them to use; takes a few seconds.

    Returns:
        Empty, or why they are not used.
    """
    if _library:
        return ""
    names = (os.environ.get("CXX", ""), *COMPILERS)
    compiler = next((path for path in map(shutil.which, names) if path), None)
    if compiler is None:
        return "there is no C++ compiler"
    source = str(Path(__file__).with_name("kernels.cpp"))
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "kernels.so")
        command = [compiler, *FLAGS, "-o", target, source]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            _library.append(ctypes.CDLL(target))
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", "") or str(error)
            return f"{compiler} failed: {said.strip().splitlines()[-1]}"
    return ""


def discard() -> None:
    """Use the kernels no more."""
    _library.clear()


def built() -> bool:
    """Whether they are there to be used."""
    return bool(_library)


def takes(dtype: torch.dtype, channels: int) -> bool:
    """Whether the kernels are built and take these channels, on a thread that has one core."""
    return built() and dtype in DTYPES and channels % (VECTOR_BYTES // dtype.itemsize) == 0


def usable(dtype: torch.dtype, channels: int) -> bool:
    """Whether they take these channels and pay on the thread that asks."""
    return takes(dtype, channels) and torch.get_num_threads() <= MOST_THREADS


def call(name: str, *arguments: Tensor | float | None, sizes: tuple[int, ...]) -> None:
    """Call a kernel; other threads run meanwhile.

    Args:
        name: Of the function, without its type.
        arguments: Tensors, laid out as the kernel reads or fills them, None for what it need not
            fill, where it says so, and numbers. The tensors are of one type, or those of products
            of matrices are `LOWER`, the others float32.
        sizes: The integers that come last.
    """
    dtypes = {value.dtype for value in arguments if isinstance(value, Tensor)}
    lower = "_bfloat16" if LOWER in dtypes else ""
    (computed,) = dtypes - {LOWER}
    function = getattr(_library[0], f"{name}_{DTYPES[computed]}{lower}")
    function.restype = None
    values = [
        ctypes.c_double(value)
        if isinstance(value, float | int)
        else ctypes.c_void_p(None if value is None else value.data_ptr())
        for value in arguments
    ]
    function(*values, *map(ctypes.c_long, sizes))
