"""The network that a pre-training leaves for the cells that start from it: a safetensors file with a digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from batchfree.errors import StudyError
from batchfree.records import write_atomically
from batchfree.study._checkpoint import tensors_digest

__all__ = ["TRAINED", "State", "load_trained", "save_trained"]

#: In the pre-training's folder.
TRAINED = "weights.safetensors"
#: Parameters and running statistics by name.
State: TypeAlias = "dict[str, Tensor]"


def save_trained(path: Path, network: nn.Module) -> None:
    """Writes the state of `network`, atomically."""
    state = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    write_atomically(path, save(state, {"sha256": tensors_digest(state)}))


def load_trained(path: Path) -> State:
    """The state that `save_trained` wrote.

    Raises:
        StudyError: the file is not there, cannot be read, was cut short, or a bit in it flipped.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            state: State = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StudyError(f"{path} cannot be read ({error}). {_MEND.format(path.parent)}") from error
    if tensors_digest(state) != metadata.get("sha256"):
        raise StudyError(f"{path} does not match its SHA-256: it was damaged. {_MEND.format(path.parent)}")
    return state


_MEND = (
    "It must be as the pre-training wrote it. Run the study again, or `batchfree study retry DIR`: the pre-training in "
    "{} is then made again. The same torch on the same kind of processor gives the same bits; elsewhere begin a new "
    "study, so that all runs of a seed start from one network."
)
