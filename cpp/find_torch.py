"""Prints, for CMake, the folder of the torch that this Python would import and which build of torch it is."""

from __future__ import annotations

import runpy
from importlib.util import find_spec
from pathlib import Path

spec = find_spec("torch")
for place in (spec.submodule_search_locations or []) if spec else []:
    folder = Path(place)
    if (folder / "include/torch/csrc/autograd/custom_function.h").exists():
        version = runpy.run_path(str(folder / "version.py"))
        # As `batchfree.torch._compiled_nodes` reads it; the C++ interface follows from the sources.
        print(folder, f"{version['__version__'].partition('+')[0]} {version['git_version']}", sep=";", end="")
