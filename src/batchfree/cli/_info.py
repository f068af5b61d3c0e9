"""`batchfree info`."""

from __future__ import annotations

import sys

from batchfree import __version__

__all__ = ["info"]


def info() -> None:
    """What is installed, what the compiled core uses on this machine, and why not the rest."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    from batchfree import _core

    print(f"batchfree {__version__}, Python {sys.version.split()[0]}")
    print(f"compiled core: {_core.compiler()}; this machine runs {', '.join(_core.instruction_sets())}")
    for package, extra in (("torch", "torch"), ("keras", "keras"), ("scikit-learn", "study")):
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} is not installed: pip install 'batchfree[{extra}]'")
    if find_spec("torch") is not None:
        from batchfree.torch import kernel_info

        print(kernel_info())
