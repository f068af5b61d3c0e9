"""The network of one cell: every arm comes from the same Batch Norm network, so that arms differ in nothing else."""

from __future__ import annotations

import torch
from torch import nn

from batchfree.convert import Norm, convert
from batchfree.records import CellConfig
from batchfree.study._data import ImageData
from batchfree.study._ghost_batch_norm import with_norm_batch
from batchfree.study._models import build_model
from batchfree.torch import GroupNorm

__all__ = ["build_network", "group_counts"]

_CONVERSIONS: dict[str, tuple[Norm, bool]] = {
    "gn": ("gn", False),
    "gn+ws": ("gn", True),
    "ln": ("ln", False),
    "in": ("in", False),
}


def build_network(config: CellConfig, data: ImageData) -> nn.Module:
    """The network that `config` asks for, with the initial weights of its seed.

    Raises:
        StudyError: Batch Norm would see one value per channel.
        ConversionError: the groups do not divide a layer's channels, or hold one value.
    """
    with torch.random.fork_rng():  # the caller's random numbers stay where they are
        torch.manual_seed(config.seed)
        channels = data.train_images.shape[1]
        network = build_model(config.model, in_channels=channels, num_classes=len(data.classes))
    example = torch.zeros(1, *data.train_images.shape[1:])
    if config.norm == "bn":
        assert config.norm_batch is not None
        return with_norm_batch(network, config.norm_batch, example)
    norm, ws = _CONVERSIONS[config.norm]
    groups = config.groups if norm == "gn" else "auto"
    return convert(network, norm, groups=groups, ws=ws, example_inputs=example)


def group_counts(network: nn.Module) -> tuple[int, ...]:
    """Groups of each Group Norm, in forward order."""
    return tuple(module.num_groups for module in network.modules() if isinstance(module, GroupNorm))
