"""The examples in the docstrings of the report."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import batchfree.report

MODULES = [module.name for module in pkgutil.iter_modules(batchfree.report.__path__, "batchfree.report.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_to_run() -> None:
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 7
