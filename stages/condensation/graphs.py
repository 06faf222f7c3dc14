"""A function of tensors as one graph of operators, compiled."""

from collections.abc import Callable
from typing import Any

import torch


def one_graph(
    function: Callable[..., Any], backend: str = "inductor", dynamic: bool | None = None
) -> Callable[..., Any]:
    """Return the function by `torch.compile`, without a break.

    Args:
        function: Of tensors, and dicts and lists of them.
        backend: Of `torch.compile`.
        dynamic: Of `torch.compile`: False compiles each shape by itself.
    """
    compiled: Callable[..., Any] = torch.compile(
        function, fullgraph=True, dynamic=dynamic, backend=backend
    )
    return compiled
