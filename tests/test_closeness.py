"""The comparison itself: everything else rests on its rejecting wrong answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.closeness import assert_close

EXPECTED = np.random.default_rng(0).normal(size=(2, 3, 4))


def test_accepts_the_reference_rounded_to_each_dtype() -> None:
    assert_close(EXPECTED, EXPECTED, dtype="float64")
    assert_close(EXPECTED.astype(np.float32), EXPECTED, dtype="float32")
    for name in ("float32", "float16", "bfloat16"):
        assert_close(torch.from_numpy(EXPECTED).to(getattr(torch, name)), EXPECTED, dtype=name)


@pytest.mark.parametrize(
    ("dtype", "slip"), [("float64", 1e-11), ("float32", 1e-3), ("float16", 0.1), ("bfloat16", 0.5)]
)
def test_rejects_one_wrong_value(dtype: str, slip: float) -> None:
    wrong = EXPECTED.copy()
    wrong[1, 2, 3] += slip
    with pytest.raises(AssertionError, match="1 of 24 values are off"):
        assert_close(torch.from_numpy(wrong).to(getattr(torch, dtype)), EXPECTED, dtype=dtype)


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("zeros", np.zeros_like(EXPECTED)),
        ("a sign", -EXPECTED),
        ("a scale", EXPECTED * 1.001),
        ("a shape that broadcasts", EXPECTED[:1]),
        ("a transposed array", EXPECTED.transpose(0, 2, 1)),
        ("NaN", np.where(np.arange(24).reshape(2, 3, 4) == 17, np.nan, EXPECTED)),
        ("infinity", np.where(np.arange(24).reshape(2, 3, 4) == 17, np.inf, EXPECTED)),
        ("an empty array", np.empty((0, 3, 4))),
    ],
)
def test_rejects(what: str, wrong: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        assert_close(wrong.astype(np.float32), EXPECTED)


def test_rejects_another_dtype_with_the_same_values() -> None:
    with pytest.raises(AssertionError, match="dtype"):
        assert_close(EXPECTED, EXPECTED, dtype="float32")


def test_nan_must_stand_where_the_reference_has_it() -> None:
    with_nan = EXPECTED.copy()
    with_nan[0, 0, 0] = np.nan
    assert_close(with_nan, with_nan, dtype="float64")
    with pytest.raises(AssertionError):
        assert_close(EXPECTED, with_nan, dtype="float64")
