"""Keras's own tests of its GroupNormalization, which ship in its wheel, with ours in its place."""

from __future__ import annotations

import types
import unittest
import warnings

import keras
import pytest

from batchfree.errors import BatchfreeError
from batchfree.keras import GroupNormalization

#: Tests that fail on purpose: they ask for the words of Keras's messages. Ours name the layer, the values, what is
#: allowed and what to do; each is a ValueError too, so that code which catches one still works.
OTHER_WORDS = {"test_groups_bigger_than_dim_error", "test_groups_not_a_multiple_of_dim_error"}


def test_keras_own_tests_pass_but_for_the_words_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("keras.src.layers.normalization.group_normalization_test")
    ours = types.SimpleNamespace(GroupNormalization=GroupNormalization, Input=keras.layers.Input)
    monkeypatch.setattr(theirs, "layers", ours)
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(theirs.GroupNormalizationTest)
    assert suite.countTestCases() > 10
    result = unittest.TestResult()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, not ours to fix
        suite.run(result)

    failed = {test.id().rpartition(".")[2]: trace for test, trace in [*result.failures, *result.errors]}
    unexpected = {name: trace for name, trace in failed.items() if name not in OTHER_WORDS}
    assert not unexpected, "\n".join(unexpected.values())
    assert set(failed) == OTHER_WORDS


@pytest.mark.parametrize("groups", [5, 3])
def test_where_the_words_differ_the_error_is_still_a_value_error(groups: int) -> None:
    with pytest.raises(ValueError, match="4 channels do not split") as raised:
        GroupNormalization(groups).build((2, 2, 2, 4))
    assert isinstance(raised.value, BatchfreeError)
