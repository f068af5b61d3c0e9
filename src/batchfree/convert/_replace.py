"""New modules at every name of the old ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["replace_everywhere"]


def replace_everywhere(root: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Puts each new module at every name of the old one, and returns the root, which may be one itself."""
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips a second name of the same module
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
                if parent.__dict__.get(name) is child:
                    parent.__dict__[name] = replacements[child]
    return replacements.get(root, root)
