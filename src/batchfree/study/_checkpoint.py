"""Where a cell is, on disk: weights, momentum and counters in one safetensors file with a digest.

Nothing is unpickled. The file format finds a file that was cut short, but not a flipped bit; the digest does.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from batchfree.errors import RecordError
from batchfree.records import write_atomically

__all__ = ["TrainingState", "load_checkpoint", "save_checkpoint"]


@dataclass
class TrainingState:
    """The counters of a training run; with weights and momentum they are all there is to go on from."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    loss_sum: float = 0.0  # over those steps
    metrics_bytes: int = 0  # length of metrics.jsonl that belongs to this state
    total_steps: int = 0
    seconds: float = 0.0


def save_checkpoint(path: Path, state: TrainingState, network: nn.Module, optimizer: torch.optim.SGD) -> None:
    """Writes everything that `load_checkpoint` restores, atomically."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    counters = json.dumps(asdict(state))  # a float's JSON is exact
    metadata = {"state": counters, "sha256": _digest(tensors, counters)}
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path, network: nn.Module, optimizer: torch.optim.SGD, *, metrics_bytes: int) -> TrainingState:
    """Puts weights and momentum back and returns the counters.

    Args:
        metrics_bytes: what metrics.jsonl holds; less than the checkpoint counts on means that lines were lost.

    Raises:
        RecordError: the file is damaged, or metrics are missing; nothing was changed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RecordError(
            f"{path} cannot be read ({error}). It was cut short. Delete it: the cell starts anew."
        ) from error
    if _digest(tensors, metadata.get("state", "")) != metadata.get("sha256"):
        raise RecordError(f"{path} does not match its SHA-256: it was damaged. Delete it: the cell starts anew.")
    state = TrainingState(**json.loads(metadata["state"]))
    if metrics_bytes < state.metrics_bytes:
        raise RecordError(
            f"{path} counts on {state.metrics_bytes} bytes of metrics.jsonl, which holds {metrics_bytes}: lines were "
            f"lost. Delete it: the cell starts anew."
        )
    network.load_state_dict(
        {name.removeprefix("network."): tensor for name, tensor in tensors.items() if name.startswith("network.")}
    )
    for name, parameter in network.named_parameters():
        if f"momentum.{name}" in tensors:
            optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{name}"]
    return state


def _digest(tensors: dict[str, Tensor], counters: str) -> str:
    digest = hashlib.sha256(counters.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
