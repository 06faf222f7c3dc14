"""Where the tensors live."""

import torch


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
