"""Networks of torchvision and timm by name."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from batchfree.errors import StudyError, require
from batchfree.study._weights import load_state

__all__ = ["LIBRARIES", "build_library_model", "check_library_name"]

#: The libraries, and the extra of batchfree that installs each.
LIBRARIES = {"torchvision": "study", "timm": "models"}
#: Their training outputs are several; the study's loss takes one.
WITH_SIDE_OUTPUTS = ("googlenet", "inception_v3")
SIDE_OUTPUTS = ("aux1.", "aux2.", "AuxLogits.")


def check_library_name(library: str, name: str) -> None:
    """Returns if the library has a classification network of that name.

    Raises:
        StudyError: it has not; the nearest names are proposed.
        MissingExtraError: the library is not installed.
    """
    names = _names(library)
    if name in names:
        return
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = " or ".join(f"{library}:{each}" for each in near)
    mend = f"Did you mean {hint}?" if near else f"Pass another; {_listing(library)} lists them."
    raise StudyError(
        f"unknown model '{library}:{name}'. Allowed: the {len(names)} names of {library}'s classification networks. "
        f"{mend}"
    )


@lru_cache
def _names(library: str) -> frozenset[str]:
    require(library, LIBRARIES[library])
    if library == "torchvision":
        import torchvision.models

        return frozenset(torchvision.models.list_models(module=torchvision.models))
    import timm

    return frozenset(timm.list_models()) | frozenset(timm.list_pretrained())


def _listing(library: str) -> str:
    return f"{library}.models.list_models()" if library == "torchvision" else "timm.list_models()"


def build_library_model(
    library: str, name: str, in_channels: int, num_classes: int, *, pretrained: bool = False
) -> nn.Module:
    """The library's network, fresh from torch's global random numbers or with its published weights.

    Raises:
        StudyError: torchvision and other than three channels, or the weights cannot be had.
    """
    if library == "timm":
        return _build_timm(name, in_channels, num_classes, pretrained)
    if in_channels != 3:
        raise StudyError(
            f"torchvision:{name} was asked for with {in_channels} input channels. torchvision's networks take 3. "
            f"Repeat the images' channel, or pass a network of timm, which takes any number."
        )
    import torchvision.models

    settings: dict[str, Any] = {"num_classes": num_classes}
    if name in WITH_SIDE_OUTPUTS:
        settings |= {"aux_logits": False, "init_weights": True, "transform_input": pretrained}
    model = torchvision.models.get_model(name, **settings)
    if pretrained:
        load_state(model, _torchvision_state(name), num_classes, f"the pretrained weights of torchvision:{name}")
    return model


def _torchvision_state(name: str) -> dict[str, Tensor]:
    """The library's best published weights, under the names of its present modules."""
    from torchvision.models import get_model_weights

    published = get_model_weights(name).DEFAULT
    try:
        state: dict[str, Tensor] = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError, ValueError) as error:
        raise StudyError(
            f"the pretrained weights of torchvision:{name} could not be had: {error}. They are {published.url}, kept "
            f"in {torch.hub.get_dir()}/checkpoints. Check the connection, put that file there, or pass the path of a "
            f".safetensors file instead of 'pretrained'."
        ) from error
    # DenseNets were published when a module's name could hold a dot: norm.1 is norm1 now.
    renamed = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value for key, value in state.items()
    }
    return {key: value for key, value in renamed.items() if not key.startswith(SIDE_OUTPUTS)}


def _build_timm(name: str, in_channels: int, num_classes: int, pretrained: bool) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, in_chans=in_channels, num_classes=num_classes)
    # huggingface_hub's errors are OSErrors; RuntimeError is timm's word for a network without published weights
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise StudyError(
            f"the pretrained weights of timm:{name} could not be had: {error} They come from huggingface.co and are "
            f"kept in {_hub_cache()}. Check the connection, copy that folder from a machine that has them, or pass "
            f"the path of a .safetensors file (a .npz file for BiT) instead of 'pretrained'."
        ) from error


def _hub_cache() -> str:
    return str(require("huggingface_hub", LIBRARIES["timm"]).constants.HF_HUB_CACHE)
