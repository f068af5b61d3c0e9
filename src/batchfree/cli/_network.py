"""The network that a command names, and its weights from a file that cannot run code."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchfree.errors import ArgumentError, BatchfreeError, require

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["build_network", "load_weights"]

EXTRAS = {"torchvision": "study", "timm": "models"}
#: Under which key training scripts put the weights.
NESTS = ("state_dict", "model_state_dict", "model")


def build_network(model: str, classes: int | None) -> nn.Module:
    """The network in evaluation mode, with fresh weights.

    Args:
        model: "torchvision:NAME", "timm:NAME", or "path/to/file.py:function", whose file is run.
        classes: of the classifier, for the libraries; their own number where `None`.

    Raises:
        ArgumentError: there is no such network; the nearest names are proposed.
        MissingExtraError: the library is not installed.
    """
    place, _, name = model.rpartition(":")
    if place in EXTRAS:
        built = _from_library(place, name, {} if classes is None else {"num_classes": classes})
    elif place.endswith(".py"):
        if classes is not None:
            raise ArgumentError(
                f"--classes {classes} was given with {model}, which builds its own. It is for torchvision and timm. "
                f"Leave it out."
            )
        built = _from_file(Path(place), name)
    else:
        raise ArgumentError(
            f"unknown model {model!r}. Allowed: torchvision:NAME, timm:NAME or path/to/file.py:function. "
            f"{_nearest(model)}"
        )
    return built.eval()


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a state dict from a `.safetensors` file or a checkpoint of `torch.save`; nothing is unpickled but tensors.

    Raises:
        ArgumentError: the file cannot be read, or does not fit the network.
    """
    import torch

    from batchfree.weights import misfit, read_safetensors

    if not path.is_file():
        raise ArgumentError(f"the weights {path} are not there. A readable file is needed. Check the path.")
    state = read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    own = network.state_dict()
    if not own.keys() & state.keys():  # saved from a network that DistributedDataParallel wrapped
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if wrong := misfit(own, state):
        raise ArgumentError(
            f"{path} does not fit the network: {wrong}. Every entry must fit. Pass the network that the weights were "
            f"saved from, and its number of --classes."
        )
    with torch.no_grad():
        network.load_state_dict({**own, **state})


def _from_library(library: str, name: str, options: dict[str, int]) -> nn.Module:
    module = require(library, EXTRAS[library])
    if library == "torchvision":
        import torchvision.models

        names = torchvision.models.list_models()
    else:
        names = module.list_models()
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        mend = f"Did you mean {' or '.join(f'{library}:{each}' for each in near)}?" if near else "Pass another."
        raise ArgumentError(f"unknown model '{library}:{name}'. Allowed: the {len(names)} names of {library}. {mend}")
    if library == "timm":
        return module.create_model(name, **options)
    if "weights_backbone" in _parameters_of(torchvision.models.get_model_builder(name)):
        return torchvision.models.get_model(name, weights=None, weights_backbone=None, **options)
    return torchvision.models.get_model(name, weights=None, **options)


def _parameters_of(function: Any) -> set[str]:
    import inspect

    return set(inspect.signature(function).parameters)


def _from_file(path: Path, name: str) -> nn.Module:
    from torch import nn

    if not path.is_file():
        raise ArgumentError(f"{path} is not there. A Python file with a function {name!r} is needed. Check the path.")
    # Under a name of its own: a file timm.py or types.py must not stand for that module from here on.
    spec = importlib.util.spec_from_file_location(f"batchfree_model_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
        function = getattr(module, name, None)
        built = function() if callable(function) else None
    except BatchfreeError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"{path}:{name} failed: {type(error).__name__}: {error}. The file must run, and the function build the "
            f"network without arguments. Mend it, or name another."
        ) from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    if not isinstance(built, nn.Module):
        found = "no such function" if function is None else f"a {type(built).__name__}"
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ArgumentError(
            f"{path} gives {found} for {name!r}. A function that returns a torch.nn.Module is needed. It has: "
            f"{', '.join(functions) or 'none'}."
        )
    return built


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    import pickle

    import torch
    from torch import Tensor

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArgumentError(
            f"{path} cannot be read as weights alone: {reason}. Allowed: a safetensors file, or a checkpoint of "
            f"torch.save that holds only tensors and plain values, since others can run code. Save the state dict "
            f"alone, with torch.save(network.state_dict(), file)."
        ) from error
    for nest in NESTS:
        if isinstance(loaded, dict) and isinstance(loaded.get(nest), dict):
            loaded = loaded[nest]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ArgumentError(
            f"{path} holds no state dict. One is needed: names and tensors, alone or under {', '.join(NESTS)}. Save "
            f"network.state_dict()."
        )
    return loaded


def _nearest(model: str) -> str:
    for library in EXTRAS:
        if importlib.util.find_spec(library) is not None:
            names = require(library, EXTRAS[library])
            listed = names.models.list_models() if library == "torchvision" else names.list_models()
            if near := difflib.get_close_matches(model.rpartition(":")[2].lower(), listed, n=1, cutoff=0.7):
                return f"Did you mean {library}:{near[0]}?"
    return "Pass one of these."
