"""The autograd nodes in C++, where this installation was built for the torch that runs; else why not.

torch's C++ interface differs from release to release, so a file built with one serves no other.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

__all__ = ["nodes", "reason_against"]

nodes: ModuleType | None = None
#: Why `nodes` is `None`; empty where it is not.
reason_against = ""

# As `cpp/find_torch.py` reads it.
_running = f"{torch.__version__.partition('+')[0]} {torch.version.git_version}"
try:
    found = importlib.import_module("batchfree.torch._autograd_nodes")
except ModuleNotFoundError:
    reason_against = "this installation has none; on Linux, `pip install --no-build-isolation` builds them"
except ImportError as error:
    reason_against = f"they cannot be loaded: {error}"
else:
    if _running == found.TORCH_BUILD:
        nodes = found
    else:
        reason_against = f"they were built with torch {found.TORCH_BUILD}, and this is torch {_running}"
