"""A state of unfinished work: named tensors and a JSON record; as bytes too, without pickle."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

_DIGEST_SIZE = hashlib.sha256().digest_size


@dataclass(frozen=True)
class State:
    """What work goes on from.

    Attributes:
        tensors: By name, of any shape; they come back on the CPU, in the same order and bits.
        record: Numbers, texts, lists and dictionaries that JSON can hold.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)


def encode_state(state: State) -> bytes:
    """Return a state as bytes: the sha256 of what follows, then safetensors with the record."""
    tensors = {name: value.detach().cpu().clone() for name, value in state.tensors.items()}
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    # safetensors sorts, and sums over the parameters of a network depend on their order.
    record = {"names": list(contiguous), "record": state.record}
    content = safetensors.torch.save(contiguous, {"record": json.dumps(record)})
    return hashlib.sha256(content).digest() + content


def decode_state(content: bytes) -> State:
    """Return the state that `encode_state` made the bytes of.

    Raises:
        ValueError: The bytes are torn or altered.
    """
    digest, content = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its content is not what was written")
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        record = json.loads(header["__metadata__"]["record"])
        tensors = safetensors.torch.load(content)
        return State({name: tensors[name] for name in record["names"]}, record["record"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"it is no state ({error})") from None


def put_momentum(
    momentum: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, names: Mapping[str, Tensor]
) -> None:
    """Give SGD the momentum buffers that `momentum_of` took.

    Args:
        momentum: What it returned, wherever it has been kept since; other tensors do no harm.
        optimiser: SGD over the tensors.
        names: Name -> the tensor that is optimised.
    """
    for name, value in names.items():
        buffer = momentum.get(f"momentum/{name}")
        if buffer is not None:
            optimiser.state[value]["momentum_buffer"] = (
                torch.empty_like(value).copy_(buffer).detach()
            )


def momentum_of(optimiser: torch.optim.Optimizer, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return SGD's momentum buffers, `momentum/` before each name; none before the first step."""
    buffers = {name: optimiser.state[value].get("momentum_buffer") for name, value in names.items()}
    return {f"momentum/{name}": buffer for name, buffer in buffers.items() if buffer is not None}
