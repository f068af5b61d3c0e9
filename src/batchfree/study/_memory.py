"""How much memory training takes per image, and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from batchfree.errors import StudyError, unknown_name
from batchfree.records import BATCH_FREE_NORMS, NORMS, CellConfig
from batchfree.study._arm import build_network
from batchfree.study._data import ImageData
from batchfree.study._models import model_channels

__all__ = ["MemoryNeed", "measure_memory"]


@dataclass(frozen=True)
class MemoryNeed:
    """Of one arm, in bytes, for training in float32 with SGD and momentum."""

    norm: str
    weights_bytes: int  # parameters and buffers
    training_bytes: int  # gradients and momentum, of what is not frozen
    kept_bytes: int  # kept for the backward pass whatever the batch, as standardised filters are
    bytes_per_image: int  # kept for the backward pass for each image, its own pixels included

    def largest_batch(self, budget_bytes: int) -> int:
        """How many images fit beside the rest; 0 where none does."""
        room = budget_bytes - self.weights_bytes - self.training_bytes - self.kept_bytes
        return max(0, room // self.bytes_per_image)


def measure_memory(
    model: str, *, image: str = "3x224x224", norms: Sequence[str] = ("bn", "gn", "gn+ws"), classes: int = 1000
) -> list[MemoryNeed]:
    """Runs each arm on two images and on four, and counts what autograd keeps.

    Args:
        model: a name that `build_model` knows.
        image: channels, height and width, for instance "3x224x224".
        norms: of `records.NORMS`.
        classes: outputs of the classifier.

    Raises:
        StudyError, ConversionError: a name or a size is refused, or an arm cannot be built.
    """
    shape = _image_shape(image)
    data = ImageData(
        torch.zeros(1, *shape, dtype=torch.uint8),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, *shape, dtype=torch.uint8),
        torch.zeros(1, dtype=torch.int64),
        tuple(map(str, range(classes))),
    )
    needs = []
    for norm in norms:
        if norm not in NORMS:
            raise StudyError(unknown_name("norm", norm, NORMS))
        channels = model_channels(model, shape[0])
        networks = {count: build_network(_config(model, norm, count), data).train() for count in (2, 4)}
        two, four = (_kept_bytes(net, torch.zeros(count, channels, *shape[1:])) for count, net in networks.items())
        per_image = (four - two) // 2
        network = networks[2]
        needs.append(
            MemoryNeed(
                norm=norm,
                weights_bytes=_size_bytes(network.parameters()) + _size_bytes(network.buffers()),
                training_bytes=2 * _size_bytes(part for part in network.parameters() if part.requires_grad),
                kept_bytes=max(0, two - 2 * per_image),
                bytes_per_image=per_image,
            )
        )
    return needs


def _kept_bytes(network: nn.Module, images: Tensor) -> int:
    """Bytes of every storage that autograd keeps for the backward pass, each once; parameters are not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}  # held, so that no storage is freed and its address used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scores = network(images)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del scores
    return total


def _size_bytes(tensors: object) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # type: ignore[attr-defined]


def _image_shape(image: str) -> tuple[int, int, int]:
    words = image.lower().split("x")
    if len(words) == 3 and all(word.isdigit() and int(word) > 0 for word in words):
        return int(words[0]), int(words[1]), int(words[2])
    raise StudyError(
        f"an image of {image!r} was asked for. It is channels x height x width. Pass for instance 3x224x224."
    )


def _config(model: str, norm: str, batch: int) -> CellConfig:
    # Frozen Batch Norm is never trained from scratch; which network was trained makes no difference to memory.
    start = {"start": "trained", "pretraining": "any"} if norm == "bn-frozen" else {}
    return CellConfig.model_validate(
        {
            "study": "memory",
            "model": model,
            "norm": norm,
            "norm_batch": None if norm in BATCH_FREE_NORMS else batch,
            "sgd_batch": batch,
            "learning_rate": 0.1,
            "epochs": 1,
            "data": "",
            "data_fingerprint": "",
            "train_images": 1,
            "validation_images": 1,
            "seed": 0,
            **start,
        }
    )
