"""Where the tensors live, and how they come there."""

from collections.abc import Sequence

import torch
from torch import Tensor


def choose_device(name: str) -> torch.device:
    """Return the device that params.yaml's `device` names.

    Raises:
        ValueError: CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError(
            "device: got cuda, but PyTorch finds no CUDA device; takes auto | cpu here"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def describe_device(device: torch.device) -> str:
    """Say which device it is, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device calculates in bfloat16 itself, which otherwise is emulated."""
    if device.type == "cuda":
        supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported
    # PyTorch before 2.11 does not say what a processor has: none then.
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return the tensor on a device, for what is copied there again and again.

    A copy from the host's ordinary memory to CUDA makes the host wait until the device has done all
    that it was given before; from pinned memory it is one more thing that the device is given.
    """
    if tensor.device.type != "cpu":
        return tensor.to(device)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class HostCopies:
    """Copies of tensors in the host's memory, of their values now; from CUDA they arrive later.

    To take a number of a tensor makes the host wait until the device has done all that it was given
    before. Of a copy it waits for what was given before that alone.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Begin to copy tensors, all on one device."""
        self._arrived: torch.cuda.Event | None = None
        if not tensors[0].is_cuda:
            self._copies = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
            return
        self._copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                tensor.detach(), non_blocking=True
            )
            for tensor in tensors
        ]
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Tensor]:
        """Return the copies, once they are there."""
        if self._arrived is not None and not self._arrived.query():
            self._arrived.synchronize()
        return self._copies
