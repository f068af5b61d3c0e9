"""Few large groups on JAX: summed as they are, and about a pivot only where that would cancel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest

from batchfree import reference
from batchfree.keras import GroupNormalization
from batchfree.keras.functional import group_norm
from tests.closeness import assert_close
from tests.keras.backend.autodiff import BACKEND, Array, value_and_gradients

pytestmark = pytest.mark.skipif(BACKEND != "jax", reason="JAX's own")

#: (N, H, W, C) and its groups; the map on which the pivot costs most, and a small one.
SHAPE, GROUPS = (4, 7, 7, 2048), 32
SMALL, SMALL_GROUPS = (3, 5, 4, 256), 2


@pytest.fixture
def optimised() -> Iterator[None]:
    """As users compile; conftest.py turns it off for what stays eager."""
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def shifted(x: Array, groups: int, offsets: Array) -> Array:
    """`x` with (N, G) offsets added to its groups."""
    grouped = x.reshape(*x.shape[:3], groups, -1) + offsets[:, None, None, :, None]
    return grouped.reshape(x.shape).astype("float32")


def expected(x: Array, groups: int, gamma: Any = None, beta: Any = None) -> Array:
    return np.moveaxis(reference.group_norm(np.moveaxis(x, -1, 1), groups, gamma, beta, 1e-3), 1, -1)


def some_far(size: int) -> Array:
    """Inputs of `size` samples of SMALL, in which some groups' means are far from 0."""
    return shifted(normal(size, *SMALL[1:]), SMALL_GROUPS, np.array([[0, 1e3], [0, 0], [-1e4, 2]])[:size])


def compiled(groups: int) -> Any:
    import jax

    return jax.jit(lambda x: group_norm(x, groups))


@pytest.mark.parametrize("offset", [0.0, 2.5, 2.8, 1e2, 1e3, 1e4])  # 2.6 deviations are where the pivot begins
def test_forward_and_gradients_match_reference_at_any_mean(offset: float, optimised: None) -> None:
    import jax

    x, upstream = normal(*SHAPE) + np.float32(offset), normal(*SHAPE, seed=1)
    gamma, beta = normal(SHAPE[-1], seed=2), normal(SHAPE[-1], seed=3)
    exact = expected(x, GROUPS, gamma, beta)
    y = jax.jit(lambda x, gamma, beta: group_norm(x, GROUPS, gamma, beta))(x, gamma, beta)
    assert_close(np.asarray(y), exact)
    y, gradients = value_and_gradients(
        lambda x, gamma, beta: group_norm(x, GROUPS, gamma, beta), (x, gamma, beta), upstream, compiled=True
    )
    assert_close(y, exact)
    wanted = reference.group_norm_backward(
        np.moveaxis(upstream, -1, 1), np.moveaxis(x, -1, 1), GROUPS, gamma, beta, 1e-3
    )
    assert wanted.weight is not None
    assert wanted.bias is not None
    assert_close(gradients[0], np.moveaxis(wanted.input, 1, -1))
    assert_close(gradients[1], wanted.weight)
    assert_close(gradients[2], wanted.bias)


def test_groups_with_small_and_large_means_match_reference_in_one_batch(optimised: None) -> None:
    offsets = np.random.default_rng(1).choice([0, 1, -2.4, 2.9, 30, -1e3, 1e4], size=(SHAPE[0], GROUPS))
    x = shifted(normal(*SHAPE), GROUPS, offsets)
    assert_close(np.asarray(compiled(GROUPS)(x)), expected(x, GROUPS))


@pytest.mark.parametrize("factor", [np.nan, np.inf, 0.0, 1e30, 1e-30])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_no_bit_of_a_sample_depends_on_its_neighbour(factor: float, offset: float, optimised: None) -> None:
    run = compiled(GROUPS)
    # Some groups are summed plainly, some about a pivot, and some are as near to the border as float32 allows.
    generator = np.random.default_rng(1)
    offsets = generator.choice([0.0, 2.0, 3.0, 1e3], size=(SHAPE[0], GROUPS))
    offsets[2] = np.sqrt(7) + generator.normal(size=GROUPS) * 1e-6
    x = normal(*SHAPE).reshape(*SHAPE[:3], GROUPS, -1).astype("float64")
    x = (x - x.mean((1, 2, 4), keepdims=True)) / x.std((1, 2, 4), keepdims=True)
    x = shifted(x.reshape(SHAPE), GROUPS, offsets)
    x[0] = normal(*SHAPE[1:])
    plain = normal(*SHAPE)  # no group of it needs the pivot
    plain[1] = x[1]
    for kept, beside in ((1, x), (2, x), (1, plain)):
        other = beside.copy()
        other[0] = other[0] * np.float32(factor) + np.float32(offset)
        np.testing.assert_array_equal(np.asarray(run(other))[kept], np.asarray(run(x))[kept])
    plain[1] = normal(*SHAPE[1:], seed=1)
    other = plain.copy()
    other[0] = other[0] * np.float32(factor) + np.float32(offset)
    np.testing.assert_array_equal(np.asarray(run(other))[1:], np.asarray(run(plain))[1:])


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e17])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_forward_matches_reference_at_tiny_and_huge_scale(scale: float, offset: float, optimised: None) -> None:
    x = ((normal(*SMALL).astype("float64") + offset) * (scale / (1 + offset))).astype("float32")
    assert_close(np.asarray(compiled(SMALL_GROUPS)(x)), expected(x, SMALL_GROUPS))


def test_eager_calls_match_reference() -> None:
    x = some_far(3)
    assert_close(np.asarray(group_norm(x, SMALL_GROUPS)), expected(x, SMALL_GROUPS))


def test_an_empty_batch_gives_an_empty_batch() -> None:
    y, gradients = value_and_gradients(lambda x: group_norm(x, 2), (normal(0, *SMALL[1:]),), normal(0, *SMALL[1:]))
    assert y.shape == gradients[0].shape == (0, *SMALL[1:])


def test_vmap_matches_reference_where_only_some_groups_need_the_pivot() -> None:
    import jax

    x = some_far(3)
    run = jax.jit(jax.vmap(lambda sample: group_norm(sample[None], SMALL_GROUPS)[0]))
    assert_close(np.asarray(run(x)), expected(x, SMALL_GROUPS))


@pytest.fixture
def model() -> Any:
    inputs = keras.Input(SMALL[1:])
    model = keras.Model(inputs, GroupNormalization(SMALL_GROUPS)(inputs))
    model(normal(*SMALL))  # Keras exports what was called
    return model


def test_an_exported_saved_model_keeps_both_ways(model: Any, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    for x in (normal(2, *SMALL[1:]), some_far(1), some_far(3)):
        assert_close(np.asarray(served.serve(tf.constant(x))), expected(x, SMALL_GROUPS))


def test_an_exported_onnx_file_keeps_both_ways(model: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter has some of its own
        model.export(tmp_path / "served.onnx", format="onnx", verbose=False)
    assert {node.domain for node in onnx.load(tmp_path / "served.onnx").graph.node} == {""}  # standard operators
    served = onnxruntime.InferenceSession(tmp_path / "served.onnx", providers=["CPUExecutionProvider"])
    for x in (normal(2, *SMALL[1:]), some_far(1), some_far(3)):
        assert_close(served.run(None, {served.get_inputs()[0].name: x})[0], expected(x, SMALL_GROUPS))
