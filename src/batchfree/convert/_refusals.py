"""Networks that cannot be converted as a whole: wrapped, compiled, scripted or quantised ones."""

from __future__ import annotations

import torch
from torch import nn

from batchfree.convert._kinds import is_batch_norm, is_uninitialized

__all__ = ["reasons_against"]

#: By the start of a class's module, or its name: importing these packages to compare classes takes seconds.
_WRAPPERS = {
    "DistributedDataParallel": "DDP holds buckets of the old Parameters. Convert the network before wrapping it: pass model.module",
    "DataParallel": "it runs replicas of the network. Convert the network before wrapping it: pass model.module",
    "FullyShardedDataParallel": "it holds the Parameters in shards. Convert the network before wrapping it",
    "FSDPModule": "its Parameters are shards (fully_shard). Convert the network before sharding it",
    "GradSampleModule": "its hooks belong to the old layers. Convert the network before PrivacyEngine wraps it",
    "OptimizedModule": "torch.compile has compiled it. Convert the network before compiling it: pass model._orig_mod",
}
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic", "torch.ao.nn.qat", "torch.ao.quantization")


def reasons_against(model: nn.Module) -> list[str]:
    """Every reason why `model` as a whole is refused, each with what to do; norms of its own aside."""
    reasons = []
    for name, module in model.named_modules():
        shown = f"{name or 'the model itself'} is a {type(module).__name__}"
        classes = {base.__name__ for base in type(module).__mro__ if base.__module__.partition(".")[0] != "__main__"}
        wrapper = next((why for wrapped, why in _WRAPPERS.items() if wrapped in classes), None)
        if wrapper is not None:
            reasons.append(f"{shown}: {wrapper}.")
        if isinstance(module, torch.jit.ScriptModule):
            reasons.append(f"{shown}: scripted code cannot be changed. Convert the network before scripting it.")
            break  # everything in it is scripted too
        if type(module).__module__.startswith(_QUANTIZED):
            reasons.append(f"{shown}: it is quantised. Convert the network before preparing it for quantisation.")
        if is_uninitialized(module) and not is_batch_norm(module):
            reasons.append(f"{shown}, lazy without its sizes yet. Run the model once on a batch before converting it.")
    return reasons
