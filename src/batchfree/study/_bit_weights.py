"""Published weights of Big Transfer (Kolesnikov et al. 2020, arXiv 1912.11370) into timm's ResNet-v2.

The files are NumPy archives. Their names, with timm's:

    resnet/root_block/standardized_conv2d/kernel                    stem.conv.weight
    resnet/block<s>/unit<u>/<a|b|c>/standardized_conv2d/kernel      stages.<s - 1>.blocks.<u - 1>.conv<1|2|3>.weight
    resnet/block<s>/unit<u>/<a|b|c>/group_norm/{gamma,beta}         ... .norm<1|2|3>.{weight,bias}
    resnet/block<s>/unit01/a/proj/standardized_conv2d/kernel        ... .downsample.conv.weight
    resnet/group_norm/{gamma,beta}                                  norm.{weight,bias}
    resnet/head/conv2d/{kernel,bias}                                head.fc.{weight,bias}

Units have two digits and count from 01. Kernels are (height, width, in, out), torch's are (out, in, height, width).
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from batchfree.errors import StudyError, require
from batchfree.weights import shortened

__all__ = ["load_bit_weights"]

HEAD = ("resnet/head/conv2d/kernel", "resnet/head/conv2d/bias")


def load_bit_weights(model: nn.Module, path: Path) -> None:
    """Loads a published `.npz` file into a `timm` ResNet-v2 with Group Norm and standardised convolutions.

    A head for another number of classes than the network's is left out.

    Raises:
        StudyError: the network is no such ResNet-v2, the file cannot be read, or an entry is missing, unknown or of
            another shape; the network is then as before.
    """
    own = _published_names(model)
    arrays = _read(path)
    if _has_other_classes(own, arrays):
        for name in HEAD:
            del own[name], arrays[name]
    differences = [
        *(f"{name} is missing" for name in sorted(own.keys() - arrays.keys())),
        *(f"{name} is unknown" for name in sorted(arrays.keys() - own.keys())),
        *(
            f"{name} is {arrays[name].dtype} {arrays[name].shape} for {_shape(own[name])}"
            for name in sorted(own.keys() & arrays.keys())
            if arrays[name].shape != _shape(own[name]) or arrays[name].dtype.kind != "f"
        ),
    ]
    if differences:
        raise StudyError(
            f"{path} does not fit the network: {shortened(differences)}. Depth, width and 3 input channels "
            f"must be those of the file, only the number of classes may differ. BiT-M-R50x1.npz fits "
            f"timm:resnetv2_50x1_bit, and so on."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            array = arrays[name].transpose(3, 2, 0, 1) if arrays[name].ndim == 4 else arrays[name]
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def _has_other_classes(own: dict[str, nn.Parameter], arrays: dict[str, npt.NDArray[Any]]) -> bool:
    """Whether both have a head, and the heads differ in the number of classes alone."""
    if not all(name in own and name in arrays and arrays[name].ndim == own[name].ndim for name in HEAD):
        return False
    here, there = ([_shape(own[name]) for name in HEAD], [arrays[name].shape for name in HEAD])
    classes = {shape[-1] for shape in there}  # the last axis counts them, of the kernel and of the bias
    return (
        classes != {shape[-1] for shape in here}
        and len(classes) == 1
        and [shape[:-1] for shape in here] == [shape[:-1] for shape in there]
    )


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        # Objects would be pickles, which can run code.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise StudyError(
            f"{path} cannot be read: {error}. It must be a whole .npz file of plain arrays, as BiT's are. "
            f"Fetch it again."
        ) from error


def _shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """The shape that the published array has."""
    shape = tuple(parameter.shape)
    return (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape


def _published_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """Each parameter of the network by its published name.

    Raises:
        StudyError: the network has parameters that no BiT file has, or misses some.
    """
    names: dict[str, nn.Parameter] = {}
    require("timm", "models")
    from timm.models.resnetv2 import PreActBottleneck, ResNetV2

    if isinstance(model, ResNetV2):
        network: Any = model  # timm's attributes are typed as any module
        names["resnet/root_block/standardized_conv2d/kernel"] = network.stem.conv.weight
        names |= _norm("resnet/", network.norm)
        for stage_number, stage in enumerate(network.stages, 1):
            for unit_number, block in enumerate(stage.blocks, 1):
                if isinstance(block, PreActBottleneck):
                    names |= _block_names(block, f"resnet/block{stage_number}/unit{unit_number:02d}/")
        head: Any = network.head.fc
        if isinstance(head, nn.Conv2d):
            names |= {HEAD[0]: head.weight, HEAD[1]: head.bias}  # type: ignore[dict-item]
    strangers = {key for key, value in model.named_parameters() if not any(value is each for each in names.values())}
    if strangers or not any(isinstance(module, nn.GroupNorm) for module in model.modules()):
        odd = f"its {', '.join(sorted(strangers)[:3])}" if strangers else "a network without Group Norm"
        raise StudyError(
            f"BiT weights were given for a {type(model).__name__}, and they have nothing for {odd}. They are for the "
            f"pre-activation ResNets with Group Norm and standardised weights. Pass timm:resnetv2_50x1_bit, or "
            f"another of timm's resnetv2_*_bit."
        )
    return names


def _block_names(block: Any, prefix: str) -> dict[str, nn.Parameter]:
    names: dict[str, nn.Parameter] = {}
    for letter, conv, norm in zip(
        "abc", (block.conv1, block.conv2, block.conv3), (block.norm1, block.norm2, block.norm3), strict=True
    ):
        names |= {f"{prefix}{letter}/standardized_conv2d/kernel": conv.weight, **_norm(f"{prefix}{letter}/", norm)}
    if block.downsample is not None:
        names[f"{prefix}a/proj/standardized_conv2d/kernel"] = block.downsample.conv.weight
    return names


def _norm(prefix: str, norm: Any) -> dict[str, nn.Parameter]:
    return {f"{prefix}group_norm/gamma": norm.weight, f"{prefix}group_norm/beta": norm.bias}
