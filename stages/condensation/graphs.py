"""A function of tensors as one graph of operators, compiled."""

import warnings
from collections.abc import Callable
from typing import Any

import torch


def one_graph(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """Return the function by `torch.compile`, without a break, compiled for each shape by itself.

    Args:
        function: Of tensors, and dicts and lists of them.
        backend: Of `torch.compile`.
    """
    # On CUDA it would advise TF32 for products of matrices, which are float32 here on purpose.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    # Not for several shapes at once: second derivatives of convolutions have no symbolic sizes.
    compiled: Callable[..., Any] = torch.compile(
        function, fullgraph=True, dynamic=False, backend=backend
    )
    return compiled
