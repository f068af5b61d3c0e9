"""A module's forward rewritten from a graph, on the same object: its class, methods, names and hooks stay.

`torch.fx.GraphModule` would be another object: `isinstance`, methods, attributes and hooks of the old one are lost.
"""

from __future__ import annotations

import functools
import importlib
import linecache
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import fx, nn

__all__ = ["rewrite_forward"]


@dataclass(frozen=True)
class _Source:
    """Python code of a forward; what it names is kept so that it can be pickled."""

    code: str
    modules: tuple[tuple[str, str], ...]
    objects: tuple[tuple[str, Any], ...]


def rewrite_forward(module: nn.Module, graph: fx.Graph) -> None:
    """From now on `module(...)` does what `graph` says; everything else about the object stays."""
    code = graph.python_code("self")
    modules = {name: value.__name__ for name, value in code.globals.items() if isinstance(value, ModuleType)}
    objects = {name: value for name, value in code.globals.items() if name not in modules}
    source = _Source(code.src, tuple(sorted(modules.items())), tuple(sorted(objects.items(), key=lambda item: item[0])))
    # nn.Module's own __setattr__ would take it for a submodule's name
    object.__setattr__(module, "__class__", _fused_class(type(module), source))


@functools.cache  # equal blocks share a class, as before, and torch.compile compiles it once
def _fused_class(base: type[nn.Module], source: _Source) -> type[nn.Module]:
    names: dict[str, Any] = {name: importlib.import_module(path) for name, path in source.modules}
    names.update(source.objects)
    filename = f"<batchfree: forward of {base.__qualname__}, {hash(source.code):x}>"
    linecache.cache[filename] = (len(source.code), None, source.code.splitlines(keepends=True), filename)
    exec(compile(source.code, filename, "exec"), names)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        _, _, *state = super(fused, self).__reduce_ex__(max(int(protocol), 2))
        return (_instance, (base, source), *state)

    attributes = {"forward": names["forward"], "__reduce_ex__": reduce, "__module__": base.__module__}
    fused = type(f"Fused{base.__name__}", (base,), attributes)
    return fused


def _instance(base: type[nn.Module], source: _Source) -> nn.Module:
    """What unpickling and deepcopy call; the state comes after."""
    fused = _fused_class(base, source)
    return fused.__new__(fused)
