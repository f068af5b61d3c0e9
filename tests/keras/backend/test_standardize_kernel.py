from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from batchfree import reference
from batchfree.keras.functional import standardize_kernel
from tests.closeness import assert_close
from tests.keras.backend.autodiff import Array, value_and_gradients


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def filters_first(kernel: Array) -> Array:
    return np.moveaxis(kernel, -1, 0)


@pytest.mark.parametrize("variant", ["bit", "qiao"])
@pytest.mark.parametrize("shape", [(3, 5, 6), (3, 3, 1, 4), (1, 1, 16, 3), (2, 2, 2, 3, 4)])
def test_kernels_and_their_gradients_match_reference(shape: tuple[int, ...], variant: Any) -> None:
    kernel, upstream = normal(*shape) * 0.05 + 1, normal(*shape, seed=1)
    y, gradients = value_and_gradients(lambda kernel: standardize_kernel(kernel, variant), (kernel,), upstream)
    assert_close(filters_first(y), reference.standardize_weight(filters_first(kernel), variant))
    wanted = reference.standardize_weight_backward(filters_first(upstream), filters_first(kernel), variant)
    assert_close(filters_first(gradients[0]), wanted)


@pytest.mark.parametrize("variant", ["bit", "qiao"])
def test_a_constant_filter_gives_zeros_and_a_finite_gradient(variant: Any) -> None:
    kernel = np.full((3, 3, 2, 4), 0.25, "float32")
    y, gradients = value_and_gradients(
        lambda kernel: standardize_kernel(kernel, variant), (kernel,), normal(3, 3, 2, 4)
    )
    assert_close(y, np.zeros(kernel.shape))
    assert np.isfinite(gradients[0]).all()
