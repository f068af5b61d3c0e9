"""Weights from a file into a network, checked entry by entry; nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from batchfree.errors import ArgumentError, StudyError
from batchfree.study._bit_weights import load_bit_weights
from batchfree.weights import misfit, read_safetensors

__all__ = ["load_state", "load_weights"]


def load_weights(model: nn.Module, path: Path, num_classes: int) -> None:
    """Loads a `.safetensors` state dict, or published BiT weights from `.npz`, into `model`.

    Raises:
        StudyError: the file cannot be read, or does not fit the network; the network is then as before.
    """
    if path.suffix == ".npz":
        load_bit_weights(model, path)
        return
    try:
        state = read_safetensors(path)
    except ArgumentError as error:
        raise StudyError(str(error)) from error
    load_state(model, state, num_classes, str(path))


def load_state(model: nn.Module, state: dict[str, Tensor], num_classes: int | None, source: str) -> None:
    """Loads `state` into `model`; a classifier for another number of classes is left out.

    Args:
        num_classes: of `model`; None: its classifier must fit too.
        source: where the state is from, for the message.

    Raises:
        StudyError: an entry is missing, unknown or of another shape; the network is then as before.
    """
    own = model.state_dict()
    others = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    if num_classes is not None and _is_classifier(others, own, state, num_classes):
        state = state | {key: own[key] for key in others}
    if wrong := misfit(own, state):
        raise StudyError(
            f"{source} does not fit the network: {wrong}. Every entry must fit"
            f"{'' if num_classes is None else ', but for a classifier of another number of classes'}. "
            f"Pass the network that the weights were saved from."
        )
    model.load_state_dict(own | state)


def _is_classifier(keys: set[str], own: dict[str, Tensor], state: dict[str, Tensor], num_classes: int) -> bool:
    """Whether the entries belong to one module whose only difference is how many classes it tells apart."""
    return len({key.rpartition(".")[0] for key in keys}) == 1 and all(
        own[key].ndim == state[key].ndim and len(own[key]) == num_classes and own[key].shape[1:] == state[key].shape[1:]
        for key in keys
    )
