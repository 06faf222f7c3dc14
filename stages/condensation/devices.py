"""Where the tensors live, and how they come there."""

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
