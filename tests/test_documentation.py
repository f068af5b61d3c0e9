"""Every Python block of the README and of docs/ runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALL_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: docs/keras.md is run by tests/keras, once per backend.
PAGES = [page for page in ALL_PAGES if page.name != "keras.md"]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: A block that needs its own process, since a process has one Keras backend.
BACKEND_BLOCK = re.compile(r"^```python KERAS_BACKEND=(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TEST = re.compile(r"^def (test_\w+)", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_one_after_the_other(page: Path, tmp_path: Path) -> None:
    blocks = PYTHON_BLOCK.findall(page.read_text(encoding="utf-8"))
    if not blocks:
        return  # a page of prose
    script = tmp_path / f"{page.stem}.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run([sys.executable, "-W", "error", str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_the_first_page_shows_a_use_that_runs_on_each_keras_backend(backend: str, tmp_path: Path) -> None:
    script = dict(BACKEND_BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")))[backend]
    script += f"\nimport keras\nassert keras.backend.backend() == {backend!r}"
    environment = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_check_finds_blocks_and_sees_a_failing_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nraise SystemExit('seen')\n```\n")
    with pytest.raises(AssertionError, match="seen"):
        test_python_blocks_run_one_after_the_other(page, tmp_path)


def test_every_test_that_a_page_names_is_there() -> None:
    defined = {name for file in (ROOT / "tests").rglob("*.py") for name in TEST.findall(file.read_text("utf-8"))}
    for page in ALL_PAGES:
        named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
        assert named <= defined, f"{page.name} names {sorted(named - defined)}"


@pytest.mark.parametrize(
    "page", [*ALL_PAGES, ROOT / "CONTRIBUTING.md", ROOT / "cpp" / "README.md"], ids=lambda page: page.name
)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
