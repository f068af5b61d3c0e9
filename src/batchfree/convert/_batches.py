"""Images in any of the forms that `calibrate` and `recover` take, as a list of batches that a network runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from batchfree.errors import ArgumentError

__all__ = ["Forward", "Images", "evaluating", "networks_forward", "read_batches", "tensors_in"]

#: One batch, or batches of any kind.
Images: TypeAlias = "Tensor | Mapping[str, Any] | Iterable[Any]"
#: Runs a network on one batch.
Forward: TypeAlias = "Callable[[nn.Module, Any], Any]"


def read_batches(images: Images, network: nn.Module, forward: Forward | None) -> list[Any]:
    """What `network` is run on, batch by batch, on its device: labels are gone where `forward` does not ask for them.

    Raises:
        ArgumentError: there is no image, or a NaN or infinity in one, or `images` is of another type.
    """
    if isinstance(images, (Tensor, Mapping)):
        images = [images]
    if isinstance(images, str) or not isinstance(images, Iterable):
        raise ArgumentError(
            f"a {type(images).__name__} was given as images. Allowed: a tensor (N, channels, ...), or a list or "
            f"DataLoader of batches. Pass one of these."
        )
    held = chain(network.parameters(), network.buffers())
    device = next((tensor.device for tensor in held), torch.device("cpu"))
    batches = [_moved(batch if forward is not None else _without_labels(batch), device) for batch in images]
    if not batches or any(_is_empty(batch) for batch in batches):
        raise ArgumentError(
            "no images were given, or a batch has none. At least one is needed, and 64 are enough. Pass a batch."
        )
    for index, batch in enumerate(batches):
        for tensor in tensors_in(batch):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ArgumentError(
                    f"batch {index} of the images holds NaN or infinity. Every value must be finite. Pass images "
                    f"prepared as for training."
                )
    return batches


def networks_forward(network: nn.Module, batch: Any) -> Any:
    """What `forward` is where it is not given: a dict is keyword arguments."""
    return network(**batch) if isinstance(batch, Mapping) else network(batch)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors_in(each)


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """The networks in evaluation mode; every module's own training flag comes back."""
    flags = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, training in flags:
            module.training = training


def _without_labels(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (tuple, list)) and batch else batch


def _is_empty(batch: Any) -> bool:
    """By its first tensor, which is the images: of a detector's targets some may well hold no box."""
    if isinstance(batch, (tuple, list, Mapping)) and not batch:
        return True
    first = next(tensors_in(batch), None)
    return first is not None and first.dim() > 0 and len(first) == 0


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        moved = [_moved(value, device) for value in batch]
        if isinstance(batch, list):
            return moved
        return type(batch)(*moved) if hasattr(batch, "_fields") else tuple(moved)
    return batch
