"""The documentation's code runs, on every backend."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from types import ModuleType

import pytest

from batchfree.keras import _convert, _group_norm, _group_normalization, _standardize_kernel, _weight_standardization
from tests.keras.backend.autodiff import BACKEND

PAGE = Path(__file__).parents[3] / "docs" / "keras.md"


@pytest.mark.skipif(BACKEND == "jax", reason="JAX compiles each operator of the page's network, for minutes")
def test_every_code_block_of_the_page_runs_in_order() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)


@pytest.mark.skipif(BACKEND == "jax", reason="the same examples as on the other backends, each compiled for seconds")
@pytest.mark.parametrize(
    "module", [_convert, _group_norm, _group_normalization, _standardize_kernel, _weight_standardization]
)
def test_every_docstring_example_gives_what_it_shows(module: ModuleType) -> None:
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testmod(module, optionflags=flags)
    assert result.attempted > 0
    assert result.failed == 0
