from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from batchfree import reference
from batchfree.errors import ArgumentError, GroupError
from batchfree.keras.functional import group_norm
from tests.closeness import assert_close
from tests.keras.backend.autodiff import BACKEND, Array, to_numpy, value_and_gradients

#: (n, c, *spatial), as the reference has it.
SHAPES = [(3, 12), (2, 12, 7), (1, 12, 5, 17), (3, 12, 16, 3), (2, 12, 3, 2, 4)]
#: JAX compiles each operator anew for each shape when nothing else is compiled, which takes most of a test's time.
COMPILED = {"tensorflow": [False, True], "jax": [True], "torch": [False]}[BACKEND]
AXES_AND_ACTIVATIONS: list[tuple[int, str | None]] = [(-1, None), (-1, "silu"), (1, "relu"), (2, "gelu")]
#: Every pair where a case takes milliseconds, each shape and each activation once where it is compiled first.
CASES = [
    *((*pair, False) for pair in itertools.product(SHAPES, AXES_AND_ACTIVATIONS) if False in COMPILED),
    *((*pair, True) for pair in zip(SHAPES, itertools.cycle(AXES_AND_ACTIVATIONS), strict=False) if True in COMPILED),
]


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def expected(
    x: Array, groups: int, gamma: Any = None, beta: Any = None, *, axis: int = -1, activation: str | None = None
) -> Array:
    channels_first = np.moveaxis(x, axis, 1)
    y = reference.group_norm(channels_first, groups, gamma, beta, 1e-3, activation=activation)
    return np.moveaxis(y, 1, axis)


@pytest.mark.parametrize(("shape", "axis_and_activation", "compiled"), CASES)
def test_forward_and_gradients_match_reference(
    shape: tuple[int, ...], axis_and_activation: tuple[int, str | None], compiled: bool
) -> None:
    axis, activation = axis_and_activation
    if axis >= len(shape):
        axis = 1
    x, upstream = (np.moveaxis(normal(*shape, seed=seed), 1, axis) for seed in range(2))
    gamma, beta = normal(12, seed=2), normal(12, seed=3)

    def run(x: Any, gamma: Any, beta: Any) -> Any:
        # Keras's name "gelu" means the tanh form, the reference's the exact one.
        named = (lambda z: keras.activations.gelu(z, approximate=False)) if activation == "gelu" else activation
        return group_norm(x, 3, gamma, beta, axis=axis, activation=named)

    y, gradients = value_and_gradients(run, (x, gamma, beta), upstream, compiled=compiled)
    assert_close(y, expected(x, 3, gamma, beta, axis=axis, activation=activation))
    wanted = reference.group_norm_backward(
        np.moveaxis(upstream, axis, 1), np.moveaxis(x, axis, 1), 3, gamma, beta, 1e-3, activation=activation
    )
    assert wanted.weight is not None
    assert wanted.bias is not None
    assert_close(gradients[0], np.moveaxis(wanted.input, 1, axis))
    assert_close(gradients[1], wanted.weight)
    assert_close(gradients[2], wanted.bias)


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize(
    ("offset", "size", "channels"),
    [(1e1, 16, 8), (1e2, 16, 8), (1e3, 16, 8), (1e4, 16, 8), (1e4, 7, 256)],  # the last, JAX reduces another way
)
def test_forward_and_gradients_match_reference_when_mean_dwarfs_deviation(
    offset: float, size: int, channels: int, compiled: bool
) -> None:
    x, upstream = normal(2, size, size, channels) + np.float32(offset), normal(2, size, size, channels, seed=1)
    gamma = normal(channels, seed=2)
    y, gradients = value_and_gradients(
        lambda x, gamma: group_norm(x, 4, gamma), (x, gamma), upstream, compiled=compiled
    )
    assert_close(y, expected(x, 4, gamma))
    wanted = reference.group_norm_backward(
        np.moveaxis(upstream, -1, 1), np.moveaxis(x, -1, 1), 4, gamma, np.zeros(channels), 1e-3
    )
    assert wanted.weight is not None
    assert_close(gradients[0], np.moveaxis(wanted.input, 1, -1))
    assert_close(gradients[1], wanted.weight)


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("channels", [4, 128])
@pytest.mark.parametrize(("size", "first"), [((32, 8), (1, 8)), ((32, 8), (4, 8)), ((8, 8), (1, 2))])
def test_first_positions_unlike_the_rest_cost_no_digits(
    size: tuple[int, int], first: tuple[int, int], channels: int, compiled: bool
) -> None:
    # The worst case for a pivot taken from the first of 32 positions: constant there, all variation elsewhere, far off.
    x = normal(2, *size, channels) + np.float32(1e4)
    x[:, : first[0], : first[1]] = -1e4
    x[1, : first[0], : first[1]] = 1e4 - 50
    y, _ = value_and_gradients(lambda x: group_norm(x, 2), (x,), x, compiled=compiled)
    assert_close(y, expected(x, 2))


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
def test_forward_matches_reference_at_tiny_and_huge_scale(scale: float) -> None:
    x = normal(2, 6, 6, 8) * np.float32(scale)
    assert_close(to_numpy(group_norm(x, 4)), expected(x, 4))


def test_a_constant_group_gives_beta_and_finite_gradients() -> None:
    x, beta = np.full((2, 3, 3, 4), 0.1, "float32"), normal(4)
    y, gradients = value_and_gradients(
        lambda x, gamma, beta: group_norm(x, 2, gamma, beta), (x, normal(4, seed=1), beta), normal(2, 3, 3, 4)
    )
    assert_close(y, np.broadcast_to(beta.astype("float64"), x.shape))
    assert all(np.isfinite(one).all() for one in gradients)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_sample_leaves_its_neighbours_alone(poison: float) -> None:
    x = normal(3, 5, 5, 4)
    x[1, 0, 0, 0] = poison
    y = to_numpy(group_norm(x, 2))
    assert_close(y[[0, 2]], expected(x[[0, 2]], 2))
    assert np.isnan(y[1]).any()


@pytest.mark.parametrize("shape", [(0, 5, 5, 4), (0, 4)])
def test_an_empty_batch_gives_an_empty_batch(shape: tuple[int, ...]) -> None:
    y, gradients = value_and_gradients(
        lambda x, gamma: group_norm(x, 2, gamma), (np.zeros(shape, "float32"), normal(4)), np.zeros(shape, "float32")
    )
    assert y.shape == shape
    assert_close(gradients[1], np.zeros(4))


@pytest.mark.parametrize(("groups", "limit"), [(1, reference.layer_norm), (-1, reference.instance_norm)])
def test_the_two_ends_are_layer_and_instance_norm(groups: int, limit: Any) -> None:
    x, gamma, beta = normal(2, 6, 5, 8), normal(8, seed=1), normal(8, seed=2)
    wanted = np.moveaxis(limit(np.moveaxis(x, -1, 1), gamma, beta, 1e-3), 1, -1)
    assert_close(to_numpy(group_norm(x, groups, gamma, beta)), wanted)


@pytest.mark.parametrize("axis", [(1, 2), [-2, -3]])
def test_several_axes_together_are_the_channels(axis: Any) -> None:
    x, gamma = normal(2, 4, 3, 5), normal(12, seed=1)
    wanted = reference.group_norm(x.reshape(2, 12, 5), 6, gamma, eps=1e-3).reshape(x.shape)
    assert_close(to_numpy(group_norm(x, 6, gamma, axis=axis)), wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_inputs_are_rounded_once(dtype: str) -> None:
    x = ops.cast(normal(2, 6, 5, 8) * 3 + 5, dtype)
    gamma, beta = normal(8, seed=1), normal(8, seed=2)
    y = group_norm(x, 4, gamma, beta, activation="silu")
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    exact = expected(to_numpy(ops.cast(x, "float32")), 4, gamma, beta, activation="silu")
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert (np.abs(to_numpy(ops.cast(y, "float32")) - exact) <= 1.01 * unit * np.abs(exact) + 1e-5).all()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="keras.ops computes in float32 at most on JAX and torch")
def test_float64_keeps_its_digits() -> None:
    x, gamma = normal(2, 6, 5, 8, dtype="float64"), normal(8, seed=1, dtype="float64")
    assert_close(
        to_numpy(group_norm(ops.convert_to_tensor(x, "float64"), 4, ops.convert_to_tensor(gamma, "float64"))),
        expected(x, 4, gamma),
        dtype="float64",
    )


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("mask_shape", [(2, 9), (2, 9, 3)])
def test_masked_values_do_not_count(mask_shape: tuple[int, ...], compiled: bool) -> None:
    x, gamma, upstream = normal(2, 9, 3, 8), normal(8, seed=1), normal(2, 9, 3, 8, seed=2)
    mask = np.random.default_rng(3).random(mask_shape) < 0.6
    everywhere = np.broadcast_to(mask.reshape(*mask_shape, *(1,) * (4 - len(mask_shape))), (2, 9, 3, 8))[..., 0]
    x[~everywhere] = 1e3
    upstream[~everywhere] = 0
    y, gradients = value_and_gradients(
        lambda x, gamma: group_norm(x, 4, gamma, mask=mask), (x, gamma), upstream, compiled=compiled
    )
    slopes = []
    for sample in range(2):
        seen = np.moveaxis(x[sample][everywhere[sample]], -1, 0)[None]  # (1, c, seen positions)
        assert_close(y[sample][everywhere[sample]], reference.group_norm(seen, 4, gamma, eps=1e-3)[0].T)
        through = np.moveaxis(upstream[sample][everywhere[sample]], -1, 0)[None]
        wanted = reference.group_norm_backward(through, seen, 4, gamma, eps=1e-3)
        assert_close(gradients[0][sample][everywhere[sample]], wanted.input[0].T)
        assert wanted.weight is not None
        slopes.append(wanted.weight)
    assert_close(gradients[1], sum(slopes))
    assert (gradients[0][~everywhere] == 0).all()


def test_a_sample_without_any_unmasked_value_is_finite() -> None:
    y, gradients = value_and_gradients(
        lambda x: group_norm(x, 2, mask=np.zeros((2, 9), bool)), (normal(2, 9, 4),), normal(2, 9, 4)
    )
    assert np.isfinite(y).all()
    assert np.isfinite(gradients[0]).all()


@settings(max_examples=4 if BACKEND == "jax" else 25, deadline=None)
@given(
    batch=st.integers(0, 3),
    groups=st.integers(1, 4),
    per_group=st.integers(1, 5),
    spatial=st.lists(st.integers(1, 9), max_size=3),
    seed=st.integers(0, 2**31),
)
def test_any_shape_matches_reference_or_is_refused(
    batch: int, groups: int, per_group: int, spatial: list[int], seed: int
) -> None:
    x = normal(batch, *spatial, groups * per_group, seed=seed)
    if per_group * int(np.prod(spatial)) == 1:
        with pytest.raises(GroupError):
            group_norm(x, groups)
        return
    if batch:
        assert_close(to_numpy(group_norm(x, groups)), expected(x, groups))
    else:
        assert group_norm(x, groups).shape == x.shape


@pytest.mark.parametrize(
    ("error", "arguments", "named"),
    [
        (GroupError, {"groups": 3}, "3"),
        (GroupError, {"groups": 16}, "16"),
        (GroupError, {"groups": 0}, "0"),
        (GroupError, {"groups": 2.0}, "2.0"),
        (ArgumentError, {"groups": 2, "axis": 4}, "4"),
        (ArgumentError, {"groups": 2, "axis": -5}, "-5"),
        (ArgumentError, {"groups": 2, "axis": 0}, "0"),
        (ArgumentError, {"groups": 2, "axis": (1, 3)}, "(1, 3)"),
        (ArgumentError, {"groups": 2, "axis": ()}, "()"),
        (ArgumentError, {"groups": 2, "epsilon": 0.0}, "0.0"),
        (ArgumentError, {"groups": 2, "mask": np.ones((2, 4), bool)}, "(2, 4)"),
    ],
)
def test_bad_arguments_are_refused_with_what_was_given(
    error: type[Exception], arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(error) as raised:
        group_norm(normal(2, 5, 5, 8), **arguments)
    assert named in str(raised.value)


def test_the_suggested_group_count_works() -> None:
    with pytest.raises(GroupError, match=r"Pass groups=4") as raised:
        group_norm(normal(2, 5, 5, 8), 3 + 2)
    assert "num_groups" not in str(raised.value)
    assert group_norm(normal(2, 5, 5, 8), 4).shape == (2, 5, 5, 8)
