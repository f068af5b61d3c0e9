from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from batchfree import BatchfreeError, errors


def test_require_names_the_pip_command_of_a_missing_extra() -> None:
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'batchfree\[study\]'") as caught:
        errors.require("a_module_nobody_has", "study")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, BatchfreeError)


def test_require_gives_the_module() -> None:
    assert errors.require("json", "study").loads("1") == 1


def test_require_does_not_hide_a_fault_inside_an_installed_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_inside.py").write_text("import another_module_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as caught:
        errors.require("broken_inside", "study")
    assert caught.value.name == "another_module_nobody_has"


def test_unknown_name_proposes_the_nearest() -> None:
    message = errors.unknown_name("data set", "fashion_mnist", ["digits", "fashion-mnist"])
    assert "Did you mean fashion-mnist?" in message
    assert "digits, fashion-mnist" in message


def test_refusals_are_value_errors_for_those_who_catch_those() -> None:
    for kind in (errors.GroupError, errors.ConversionError, errors.DataError, errors.StudyError, errors.RecordError):
        assert issubclass(kind, ValueError)
        assert issubclass(kind, BatchfreeError)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(errors).failed == 0
