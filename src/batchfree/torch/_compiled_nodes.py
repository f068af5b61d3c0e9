"""The autograd nodes in C++, where this installation was built for the torch that runs; else why not.

torch's C++ interface differs from release to release, so a file built with one serves no other.
"""

from __future__ import annotations

from types import ModuleType

import torch

__all__ = ["nodes", "reason_against"]

nodes: ModuleType | None = None
#: Why `nodes` is `None`; empty where it is not.
reason_against = ""

try:
    from batchfree.torch import _autograd_nodes
except ModuleNotFoundError:
    reason_against = "torch was not there when batchfree was built"
except ImportError as error:
    reason_against = f"they cannot be loaded: {error}"
else:
    running = torch.__version__.partition("+")[0]
    if running == _autograd_nodes.TORCH_VERSION:
        nodes = _autograd_nodes
    else:
        reason_against = f"they were built with torch {_autograd_nodes.TORCH_VERSION}, and this is torch {running}"
