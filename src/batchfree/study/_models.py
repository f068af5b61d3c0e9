"""The networks of the studies by name: small ones of ours, and those of torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from batchfree.errors import StudyError, unknown_name
from batchfree.study._library_models import LIBRARIES, build_library_model, check_library_name
from batchfree.study._small_resnet import SmallResNet
from batchfree.study._small_vgg import SmallVGG
from batchfree.study._weights import load_weights
from batchfree.study._weights_file import check_weights_file
from batchfree.study._zero_gamma import set_zero_gamma

__all__ = ["MODELS", "build_model", "check_model_name", "model_channels"]

#: The small networks by name; each builds one for (in_channels, num_classes). The residual ones have 6n + 2 layers, n
#: residual blocks per stage (He et al. 2016, section 4.2).
MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    **{f"resnet{depth}": partial(SmallResNet, depth) for depth in (8, 14, 20, 32, 44, 56)},
    "vgg16-small": SmallVGG,
}


def check_model_name(name: str) -> None:
    """Returns if `build_model` knows `name`: one of `MODELS`, "torchvision:NAME" or "timm:NAME".

    Raises:
        StudyError: no such network; the nearest names are proposed.
        MissingExtraError: the library is not installed.
    """
    library, colon, short = name.partition(":")
    if colon and library in LIBRARIES:
        check_library_name(library, short)
    elif name not in MODELS:
        raise StudyError(
            unknown_name("model", name, MODELS)
            + " Networks of torchvision and timm are called torchvision:NAME and timm:NAME."
        )


def model_channels(name: str, data_channels: int) -> int:
    """Input channels that the network is built with for images of `data_channels`.

    torchvision's networks take 3: grey images are to be repeated. All others take what the data has.
    """
    return 3 if name.startswith("torchvision:") else data_channels


def build_model(
    name: str, *, in_channels: int, num_classes: int, zero_gamma: bool | None = None, weights: str | None = None
) -> nn.Module:
    """A network with Batch Norm (or what its library gives it) for classification.

    Args:
        name: one of `MODELS`, "torchvision:NAME" or "timm:NAME".
        in_channels: see `model_channels`.
        zero_gamma: True makes the last norm's weight of each residual block 0 (where a norm does not come last, timm
            makes the last convolution 0), False makes it 1, `None` leaves the network's own default: 0 for ours and
            for most of timm's, 1 for torchvision's.
        weights: `None` for fresh ones from torch's global random numbers; "pretrained" for the library's own, fetched
            if they are not on this machine; the path of a `.safetensors` file with a state dict; the path of a `.npz`
            file with published BiT weights, for "timm:resnetv2_*_bit". A classifier for another number of classes is
            not taken from them: it stays fresh.

    Raises:
        StudyError: no such network, it lacks what was asked for, or the weights cannot be had or do not fit.
        MissingExtraError: the library is not installed.
    """
    check_model_name(name)
    if weights is not None and zero_gamma is not None:
        raise StudyError(
            f"zero_gamma={zero_gamma} was given beside the weights {weights}, which bring their own. It is for fresh "
            f"weights. Leave one of them out."
        )
    if weights is not None and weights != "pretrained":
        check_weights_file(weights)
    library, colon, short = name.partition(":")
    pretrained = weights == "pretrained"
    if colon:
        model = build_library_model(library, short, in_channels, num_classes, pretrained=pretrained)
    elif pretrained:
        raise StudyError(
            f"pretrained weights were asked for {name}, for which nobody publishes any. Networks of torchvision and "
            f"timm have some. Pass such a name, a .safetensors file, or no weights."
        )
    else:
        model = MODELS[name](in_channels, num_classes)
    if zero_gamma is not None:
        set_zero_gamma(model, zero_gamma, name)
    if weights is not None and not pretrained:
        load_weights(model, Path(weights), num_classes)
    return model
