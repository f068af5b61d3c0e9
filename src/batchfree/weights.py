"""Weights for a network: read from a file that cannot run code, and what keeps them from fitting, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from batchfree.errors import ArgumentError

__all__ = ["misfit", "read_safetensors", "shortened"]

SHOWN_DIFFERENCES = 6


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file by name, on the CPU.

    Raises:
        ArgumentError: the file is not there, or is damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArgumentError(
            f"{path} cannot be read: {error}. It must be a whole safetensors file. Copy or save it again."
        ) from error


def misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What keeps `state` from replacing a network's `own` state dict, for a message; empty where nothing does.

    >>> misfit({"weight": torch.ones(4), "bias": torch.ones(4)}, {"weight": torch.ones(3), "gain": torch.ones(4)})
    'bias is missing; gain is unknown; weight is (3,) for (4,)'
    """
    # Networks saved before torch counted batches have no such entry.
    missing = {key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked")}
    reshaped = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    return shortened(
        [
            *(f"{key} is missing" for key in sorted(missing)),
            *(f"{key} is unknown" for key in sorted(state.keys() - own.keys())),
            *(f"{key} is {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in sorted(reshaped)),
        ]
    )


def shortened(differences: Sequence[str]) -> str:
    """The first of the differences, and how many more there are; empty where there are none.

    >>> shortened(["a is missing", "b is unknown"])
    'a is missing; b is unknown'
    """
    rest = len(differences) - SHOWN_DIFFERENCES
    return "; ".join(differences[:SHOWN_DIFFERENCES]) + (f"; and {rest} more" if rest > 0 else "")
