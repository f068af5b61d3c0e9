"""The one-way directions between the packages, and what an import loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import batchfree

SOURCE = Path(batchfree.__file__).parent

#: What each place may import of ours, and from outside the standard library. Nothing points back.
#: "" is the package itself: what `import batchfree` gives.
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "__init__": ({"errors"}, set()),
    "__main__": ({"cli", "errors"}, set()),
    "errors": (set(), set()),
    "groups": ({"errors"}, set()),
    "reference": ({"groups", "errors"}, {"numpy"}),
    "torch": ({"_core", "groups", "errors"}, {"torch"}),
    # tensorflow, jax: operators Keras does not offer, imported only where the backend is that one
    "keras": ({"groups", "errors"}, {"keras", "numpy", "tensorflow", "jax"}),
    "convert": ({"torch", "groups", "errors"}, {"torch", "numpy"}),
    "images": ({"errors"}, {"numpy", "PIL"}),
    "weights": ({"errors"}, {"torch", "safetensors"}),
    "records": ({"errors"}, {"pydantic", "typing_extensions"}),
    "study": (
        {"convert", "torch", "records", "groups", "images", "weights", "errors", ""},
        {"torch", "torchvision", "timm", "pydantic", "numpy", "PIL", "sklearn", "safetensors", "filelock", "tomli"},
    ),
    "report": ({"records", "errors"}, {"numpy", "scipy", "matplotlib", "jinja2"}),
    # Its libraries are imported through errors.require, by name.
    "export": ({"records", "errors"}, {"pyarrow", "tensorboard", "mlflow"}),
    "cli": (
        {"_core", "convert", "torch", "records", "images", "weights", "errors", "study", "report", "export", ""},
        # to build the network that a command names, and to read its weights and images
        {"typer", "rich", "pydantic", "tomli", "torch", "torchvision", "timm", "safetensors", "numpy"},
    ),
}


def place_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> list[str]:
    """Every module that the file imports, at the top or inside a function, by its dotted name."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from batchfree import x` may mean the module batchfree.x
            names += (
                [f"batchfree.{alias.name}" for alias in node.names] if node.module == "batchfree" else [node.module]
            )
    return names


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_directions_of_the_design(path: Path) -> None:
    place = place_of(path)
    ours, outside = ALLOWED[place]
    for name in imported_modules(path):
        first, _, rest = name.partition(".")
        if first == "batchfree":
            target = rest.partition(".")[0]
            exported = target in batchfree.__all__  # `from batchfree import __version__`
            assert target in ours | {place} or (exported and "" in ours), f"{path}: {place} may not import {name}"
        else:
            assert first in outside | set(sys.stdlib_module_names), f"{path}: {place} may not import {name}"


def test_the_check_rejects_an_import_against_the_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "groups.py"
    wrong.write_text("def f():\n    from batchfree import torch\n")
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    with pytest.raises(AssertionError, match="may not import"):
        test_imports_follow_the_directions_of_the_design(wrong)


def test_private_modules_stay_inside_their_package() -> None:
    for path in SOURCE.rglob("*.py"):
        for name in imported_modules(path):
            parts = name.split(".")
            if parts[0] == "batchfree" and len(parts) > 2 and parts[2].startswith("_"):
                assert parts[1] == place_of(path), f"{path} reaches into {name}"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("batchfree", {"torch", "keras", "tensorflow", "jax", "numpy", "pydantic", "typer"}),
        ("batchfree.reference", {"torch", "keras", "scipy"}),
        ("batchfree.records", {"torch", "numpy"}),
        ("batchfree.report", {"torch", "torchvision"}),
        ("batchfree.study", {"torchvision", "timm", "sklearn", "matplotlib", "scipy"}),
        ("batchfree.export", {"torch", "numpy", "pyarrow", "tensorboard", "mlflow"}),
        ("batchfree.cli", {"torch", "torchvision", "matplotlib", "scipy"}),
        ("batchfree.study", {"ray", "submitit", "matplotlib"}),
        # torch._dynamo is torch.compile: seconds, and beside TensorFlow it may crash
        ("batchfree.torch", {"torchvision", "matplotlib", "pydantic", "torch._dynamo"}),
    ],
)
def test_importing_loads_no_more_than_it_needs(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({unwanted!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_extension_is_compiled_and_loads() -> None:
    from batchfree import _core

    assert _core.instruction_sets()[0] == "baseline"
    assert _core.compiler().split()[0] in {"GCC", "Clang"}
