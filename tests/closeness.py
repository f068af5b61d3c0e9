"""The one tolerance rule of the tests: how near a result must be to its float64 reference.

|actual - expected| <= TOLERANCE[dtype] * (|expected| + largest |expected|)

The second term is there because a sum of many terms is only as exact as its largest ones. The tolerance is about a
hundred units in the last place for float64 and float32, two for the half types, whose last rounding dominates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: Relative to the expected value, by dtype of the actual one. The same on every machine.
TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def assert_close(actual: Any, expected: npt.ArrayLike, *, dtype: str = "float32") -> None:
    """Fails unless `actual` has the expected shape, the named dtype and, element by element, the expected values.

    Args:
        actual: a NumPy array, or a torch tensor on the CPU.
        expected: float64 reference; NaN and infinities must stand at the same places in both.
        dtype: what `actual` must be.
    """
    assert str(actual.dtype).removeprefix("torch.") == dtype, f"dtype is {actual.dtype}, expected {dtype}"
    values = _float64(actual)
    wanted = np.asarray(expected, np.float64)
    assert values.shape == wanted.shape, f"shape is {values.shape}, expected {wanted.shape}"

    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(values[~finite], wanted[~finite])
    assert np.isfinite(values[finite]).all(), "NaN or infinity where the reference is finite"
    if not finite.any():
        return
    scale = np.abs(wanted[finite]).max()
    error = np.abs(values[finite] - wanted[finite])
    allowed = TOLERANCE[dtype] * (np.abs(wanted[finite]) + scale)
    worst = int(np.argmax(error - allowed))
    assert (error <= allowed).all(), (
        f"{(error > allowed).sum()} of {error.size} values are off; the worst is {values[finite][worst]!r} "
        f"for {wanted[finite][worst]!r}, {error[worst]:.3g} away where {allowed[worst]:.3g} is allowed"
    )


def _float64(array: Any) -> npt.NDArray[np.float64]:
    if isinstance(array, np.ndarray):
        return array.astype(np.float64)
    return np.asarray(array.detach().double().numpy())  # a torch tensor: NumPy has no bfloat16
