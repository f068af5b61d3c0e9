"""The network of one cell: every arm comes from the same Batch Norm network, so that arms differ in nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchfree.convert import Affine, Groups, Norm, Ws, calibrate, convert, recover, standardize_weights
from batchfree.errors import StudyError
from batchfree.groups import resolve_num_groups
from batchfree.records import CellConfig
from batchfree.study._bit_layers import has_bit_layers, require_batch_norm, with_own_layers
from batchfree.study._data import ImageData, resized
from batchfree.study._frozen_batch_norm import with_frozen_batch_norm
from batchfree.study._ghost_batch_norm import with_norm_batch
from batchfree.study._models import build_model, model_channels
from batchfree.study._trained_network import State
from batchfree.study._weights import load_state
from batchfree.torch import GroupNorm

__all__ = ["NetworkImages", "build_network", "group_counts"]

#: What `calibrate` and `recover` say is enough.
CALIBRATION_IMAGES = 64
RECOVERY_IMAGES = 512
#: Networks are trained from scratch, so Weight Standardization is the strict form, as published.
_CONVERSIONS: dict[str, tuple[Norm, Ws]] = {
    "gn": ("gn", False),
    "gn+ws": ("gn", "strict"),
    "ln": ("ln", False),
    "in": ("in", False),
}


def build_network(config: CellConfig, data: ImageData, trained: State | None = None) -> nn.Module:
    """The network that `config` asks for, with the initial weights of its seed, or what its start makes of `trained`.

    Args:
        trained: for a start from a trained network. Without it the network is only of the right kind.

    Raises:
        StudyError: no such model, `trained` does not fit it, or Batch Norm would see one value per channel.
        ConversionError: the groups do not divide a layer's channels, or hold one value.
    """
    channels = _channels(config, data)
    with torch.random.fork_rng():  # the caller's random numbers stay where they are
        torch.manual_seed(config.seed)
        network = build_model(
            config.model,
            in_channels=channels,
            num_classes=len(data.classes),
            zero_gamma=config.zero_gamma,
            weights=config.weights,
        )
    side = data.train_images.shape[2:] if config.image_size is None else (config.image_size, config.image_size)
    example = torch.zeros(1, channels, *side)
    if trained is not None:
        load_state(network, trained, None, f"the network of {config.pretraining}")
    if config.norm == "gn+ws" and has_bit_layers(network):
        if config.groups != "auto" or config.channels_per_group is not None:
            raise StudyError(
                f"groups were given for {config.model}, which is built with groups of its own. They are for networks "
                f"that are converted. Leave groups and channels_per_group out."
            )
        return with_own_layers(network)
    require_batch_norm(network, config.model, config.norm)
    if config.norm == "none":
        return _without_norms(network)
    if config.norm == "bn-frozen":
        return with_frozen_batch_norm(network)
    if config.norm in ("bn", "bn+ws"):
        assert config.norm_batch is not None
        network = with_norm_batch(network, config.norm_batch, example)
        return standardize_weights(network, example) if config.norm == "bn+ws" else network
    norm, ws = _CONVERSIONS[config.norm]
    groups = _groups(config) if norm == "gn" else "auto"
    affine: Affine = "fresh" if config.start == "fresh" else "keep"
    converted = convert(network, norm, groups=groups, ws=ws, affine=affine, example_inputs=example)
    if trained is not None and config.start in ("calibrated", "recovered"):
        _fit(converted.to(config.device), network.to(config.device), config, data)
    return converted


def _fit(converted: nn.Module, original: nn.Module, config: CellConfig, data: ImageData) -> None:
    """Calibrates, and recovers where `config` says so, on the first images of the fine-tuning set, without labels.

    On these and not on those of the pre-training: whoever fine-tunes a network has the images of the task at hand, and
    what the norms must fit is the network on them, even where it is often wrong.
    """
    images = NetworkImages(config, data)
    chooses_groups = config.groups == "auto" and config.channels_per_group is None
    calibrate(
        converted,
        original,
        images.training(slice(CALIBRATION_IMAGES)),
        groups="auto" if chooses_groups else "keep",
        eps="auto",
        filters="auto",
    )
    if config.start == "recovered":
        recover(converted, original, images.training(slice(RECOVERY_IMAGES)), seed=config.seed)


def group_counts(network: nn.Module) -> tuple[int, ...]:
    """Groups of each Group Norm, in forward order."""
    return tuple(module.num_groups for module in network.modules() if isinstance(module, GroupNorm))


class NetworkImages:
    """A data set as one network takes it: standardised per channel, grey repeated where colour is wanted."""

    def __init__(self, config: CellConfig, data: ImageData) -> None:
        self._channels = _channels(config, data)
        self._mean, self._deviation = (part.to(config.device) for part in data.channel_statistics())
        self._pixels = data.train_images
        self._side = config.image_size if config.stored_size else None
        # Without augmentation every epoch takes the same images, so they are standardised once.
        self._training = self._standardised(self._pixels) if config.augment == "none" else None
        self._validation = self._standardised(data.validation_images)
        self._validation_labels = data.validation_labels.to(config.device)

    def training(self, chosen: Tensor | slice, pixels: Tensor | None = None) -> Tensor:
        """The chosen training images, whole, or `pixels` that were drawn from them."""
        if pixels is not None:
            return self._standardised(pixels)
        if self._training is not None:
            return self._training[chosen]
        whole = self._pixels[chosen]
        return self._standardised(whole if self._side is None else resized(whole, self._side))

    def validation(self) -> tuple[Tensor, Tensor]:
        """All validation images and their labels."""
        return self._validation, self._validation_labels

    def _standardised(self, pixels: Tensor) -> Tensor:
        images = (pixels.to(self._mean.device) - self._mean) / self._deviation
        return images.expand(-1, self._channels, -1, -1) if images.shape[1] != self._channels else images


def _channels(config: CellConfig, data: ImageData) -> int:
    """Of the images that the network takes; trained weights are for colour."""
    return 3 if config.weights else model_channels(config.model, data.train_images.shape[1])


def _groups(config: CellConfig) -> Groups:
    """A layer that is narrower than what was asked for gets what exists: a group per channel, or one group."""
    groups, size = config.groups, config.channels_per_group
    if size is not None:
        return lambda channels: resolve_num_groups(channels, channels_per_group=min(size, channels))
    if groups == "auto":
        return "auto"
    return lambda channels: resolve_num_groups(channels, min(groups, channels))


def _without_norms(network: nn.Module) -> nn.Module:
    """`network` with nothing in place of each Batch Norm but the layers that it holds."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, nn.Sequential(*child.children()) if list(child.children()) else nn.Identity())
    return network
