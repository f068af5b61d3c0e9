"""Where a cell is, on disk: weights, optimiser and counters in one safetensors file with a digest.

Nothing is unpickled. The file format finds a file that was cut short, but not a flipped bit; the digest does. The
checkpoint before the last stays beside it, for when the last is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from batchfree.errors import RecordError
from batchfree.records import write_atomically

__all__ = [
    "TrainingState",
    "has_checkpoint",
    "load_checkpoint",
    "remove_checkpoints",
    "save_checkpoint",
    "tensors_digest",
]


@dataclass
class TrainingState:
    """The counters of a training run; with weights, optimiser and configuration they are all there is to go on from."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    loss_sum: float = 0.0  # over those steps
    metrics_bytes: int = 0  # length of metrics.jsonl that belongs to this state
    total_steps: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    num_groups: list[int] | None = None  # of each norm in forward order: no shape of a weight tells them


def save_checkpoint(path: Path, state: TrainingState, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes everything that `load_checkpoint` restores, atomically; what `path` held becomes the previous one."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state[parameter].items():
            if value is not None:
                tensors[f"optimizer.{key}.{name}"] = value
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    counters = json.dumps(asdict(state))  # a float's JSON is exact
    metadata = {"state": counters, "sha256": tensors_digest(tensors, counters)}
    content = save(tensors, metadata)
    if path.exists():
        os.replace(path, _previous(path))  # until the next line there is the previous one alone
    write_atomically(path, content)


def load_checkpoint(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, *, metrics_bytes: int
) -> TrainingState:
    """Puts weights and optimiser back and returns the counters: of `path`, of the one before it, or new ones.

    A checkpoint that is damaged is passed over, and a line on standard output says so.

    Args:
        metrics_bytes: what metrics.jsonl holds; less than a checkpoint counts on means that lines were lost.
    """
    for candidate, otherwise in ((path, "the previous checkpoint is tried"), (_previous(path), "the run starts anew")):
        if candidate.exists():
            try:
                state, tensors = _read(candidate, metrics_bytes)
            except RecordError as error:
                print(f"{error} It is passed over: {otherwise}.", flush=True)
                candidate.unlink(missing_ok=True)  # or the next one would take the good one's place with it
                continue
            _restore(tensors, network, optimizer)
            return state
    return TrainingState()


def has_checkpoint(path: Path) -> bool:
    """Whether there is one to go on from: a kill while one is written leaves the previous one alone."""
    return path.exists() or _previous(path).exists()


def remove_checkpoints(path: Path) -> None:
    """Both of them, where they are."""
    path.unlink(missing_ok=True)
    _previous(path).unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_name(f"previous-{path.name}")


def _read(path: Path, metrics_bytes: int) -> tuple[TrainingState, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RecordError(f"{path} cannot be read ({error}): it was cut short.") from error
    if tensors_digest(tensors, metadata.get("state", "")) != metadata.get("sha256"):
        raise RecordError(f"{path} does not match its SHA-256: it was damaged.")
    try:
        state = TrainingState(**json.loads(metadata["state"]))
    except TypeError as error:
        raise RecordError(f"{path} has other counters than this batchfree's ({error}).") from error
    if metrics_bytes < state.metrics_bytes:
        raise RecordError(
            f"{path} counts on {state.metrics_bytes} bytes of metrics.jsonl, which holds {metrics_bytes}: lines were "
            f"lost."
        )
    return state, tensors


def _restore(tensors: dict[str, Tensor], network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        parts.setdefault(kind, {})[rest] = tensor
    network.load_state_dict(parts["network"])
    parameters = dict(network.named_parameters())
    for name, tensor in parts.get("optimizer", {}).items():
        key, _, parameter = name.partition(".")
        # Adam counts its steps on the CPU, wherever the weights are.
        target = tensor if key == "step" else tensor.to(parameters[parameter].device)
        optimizer.state[parameters[parameter]][key] = target


def tensors_digest(tensors: dict[str, Tensor], counters: str = "") -> str:
    """SHA-256 over `counters` and every tensor with its name."""
    digest = hashlib.sha256(counters.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
