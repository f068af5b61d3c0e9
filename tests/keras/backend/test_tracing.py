"""What each backend's own transformations make of the layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import ops

from batchfree import reference
from batchfree.keras import GroupNormalization, WeightStandardizedConv2D
from batchfree.keras.functional import group_norm
from tests.closeness import assert_close
from tests.keras.backend.autodiff import BACKEND, Array, to_numpy

on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="JAX's own")
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="torch's own")


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def expected(x: Array, groups: int, gamma: Any = None) -> Array:
    return np.moveaxis(reference.group_norm(np.moveaxis(x, -1, 1), groups, gamma, eps=1e-3), 1, -1)


def reference_gradient(x: Array, upstream: Array, groups: int, gamma: Array) -> Array:
    slopes = reference.group_norm_backward(np.moveaxis(upstream, -1, 1), np.moveaxis(x, -1, 1), groups, gamma, eps=1e-3)
    return np.moveaxis(slopes.input, 1, -1)


def slope_along(x: Array, direction: Array, upstream: Array, gamma: Array, step: float = 1e-4) -> Array:
    """d/dt of the reference's gradient at x + t * direction, by central differences in float64."""
    ahead, behind = (x.astype("float64") + sign * step * direction for sign in (1, -1))
    difference = reference_gradient(ahead, upstream, 2, gamma) - reference_gradient(behind, upstream, 2, gamma)
    return difference / (2 * step)


@on_tensorflow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_tf_function_with_unknown_sizes_matches_reference(jit_compile: bool) -> None:
    import tensorflow as tf

    signature = [tf.TensorSpec([None, None, None, 8], tf.float32)]
    run = tf.function(lambda x: group_norm(x, 4), input_signature=signature, jit_compile=jit_compile, autograph=False)
    for shape in ((1, 5, 7, 8), (3, 9, 4, 8)):
        assert_close(to_numpy(run(tf.constant(normal(*shape)))), expected(normal(*shape), 4))
    assert run.experimental_get_tracing_count() == 1


@on_tensorflow
def test_gradients_of_gradients_in_tensorflow() -> None:
    import tensorflow as tf

    x, direction, upstream, gamma = (normal(2, 4, 4, 8, seed=seed) for seed in (0, 1, 2, 3))
    scale = gamma[0, 0, 0]
    variable = tf.constant(x)
    with tf.GradientTape() as outer:
        outer.watch(variable)
        with tf.GradientTape() as inner:
            inner.watch(variable)
            y = group_norm(variable, 2, scale)
        gradient = inner.gradient(y, variable, output_gradients=tf.constant(upstream))
    second = outer.gradient(gradient, variable, output_gradients=tf.constant(direction))
    # The Hessian is symmetric: pulling `direction` back is moving along it.
    assert_close(to_numpy(second), slope_along(x, direction, upstream, scale))


@on_jax
@pytest.mark.parametrize("channels", [8, 128])  # 64 channels per group are reduced another way
def test_jit_grad_vmap_and_forward_mode_in_jax(channels: int) -> None:
    import jax

    x, direction, upstream = (normal(2, 4, 4, channels, seed=seed) for seed in (0, 1, 2))
    gamma = normal(channels, seed=3)

    def gradient(x: Any) -> Any:
        return jax.grad(lambda x: (group_norm(x, 2, gamma) * upstream).sum())(x)

    assert_close(np.asarray(jax.jit(gradient)(x)), reference_gradient(x, upstream, 2, gamma))
    _, slope = jax.jit(lambda x, v: jax.jvp(lambda x: group_norm(x, 2, gamma), (x,), (v,)))(x, direction)
    assert_close(np.asarray((slope * upstream).sum()), (reference_gradient(x, upstream, 2, gamma) * direction).sum())
    _, second = jax.jit(lambda x, v: jax.jvp(gradient, (x,), (v,)))(x, direction)
    assert_close(np.asarray(second), slope_along(x, direction, upstream, gamma))
    per_sample = jax.jit(jax.vmap(lambda sample: group_norm(sample[None], 2, gamma)[0]))
    assert_close(np.asarray(per_sample(x)), expected(x, 2, gamma))


@on_torch
def test_gradients_of_gradients_in_torch() -> None:
    import torch

    x, direction, upstream = (normal(2, 4, 4, 8, seed=seed) for seed in (0, 1, 2))
    gamma = normal(8, seed=3)
    leaf = torch.tensor(x, requires_grad=True)
    (gradient,) = torch.autograd.grad(group_norm(leaf, 2, gamma), leaf, torch.tensor(upstream), create_graph=True)
    (second,) = torch.autograd.grad(gradient, leaf, torch.tensor(direction))
    assert_close(second, slope_along(x, direction, upstream, gamma))


@on_torch
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_torch_and_keras_layers_agree_with_one_reference(activation: Any) -> None:
    import torch

    from batchfree.torch import GroupNorm

    x, gamma, beta = normal(2, 8, 5, 6), normal(8, seed=1), normal(8, seed=2)
    ours = GroupNormalization(4, axis=1, activation=activation)
    theirs = GroupNorm(4, 8, eps=1e-3, activation=activation)
    ours.build(x.shape)
    ours.set_weights([gamma, beta])
    theirs.load_state_dict({"weight": torch.tensor(gamma), "bias": torch.tensor(beta)})
    wanted = reference.group_norm(x, 4, gamma, beta, 1e-3, activation=activation)
    assert_close(to_numpy(ours(x)), wanted)
    assert_close(theirs(torch.tensor(x)), wanted)


def exported(size: int | None = 6) -> tuple[Any, Callable[[Array], Array]]:
    """A model with both layers and random weights, called once, and the same function in float64."""
    inputs = keras.Input((size, size, 3))
    features = WeightStandardizedConv2D(8, 1, use_bias=False)(inputs)
    model = keras.Model(inputs, GroupNormalization(4, activation="relu")(features))
    kernel, gamma, beta = normal(1, 1, 3, 8), normal(8, seed=1), normal(8, seed=2)
    model.set_weights([kernel, gamma, beta])
    model(normal(1, 6, 6, 3))  # Keras exports what was called
    standardized = reference.standardize_weight(np.moveaxis(kernel, -1, 0)).reshape(8, 3)

    def exact(x: Array) -> Array:
        channels_first = np.moveaxis(x.astype("float64") @ standardized.T, -1, 1)
        return np.moveaxis(reference.group_norm(channels_first, 4, gamma, beta, 1e-3, activation="relu"), 1, -1)

    return model, exact


@pytest.mark.skipif(BACKEND == "torch", reason="Keras exports a SavedModel from TensorFlow and JAX")
def test_an_exported_saved_model_serves_any_batch(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    model, exact = exported()
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    for batch in (1, 3):
        x = normal(batch, 6, 6, 3, seed=3)
        assert_close(np.asarray(served.serve(tf.constant(x))), exact(x))


@pytest.mark.parametrize("size", [6, None])
def test_an_exported_onnx_file_serves_any_batch_and_size(size: int | None, tmp_path: Path) -> None:
    model, exact = exported(size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each backend's exporter has some of its own
        model.export(tmp_path / "served.onnx", format="onnx", verbose=False)
    assert {node.domain for node in onnx.load(tmp_path / "served.onnx").graph.node} == {""}  # standard operators
    served = onnxruntime.InferenceSession(tmp_path / "served.onnx", providers=["CPUExecutionProvider"])
    name = served.get_inputs()[0].name
    for batch, height, width in ((1, 6, 6), (3, 6, 6), (2, 1, 7), (1, 17, 2)):
        if size in (None, height) and size in (None, width):
            x = normal(batch, height, width, 3, seed=3)
            assert_close(served.run(None, {name: x})[0], exact(x))


def test_predict_is_compiled_and_matches_reference() -> None:
    model, exact = exported()
    x = normal(2, 6, 6, 3, seed=3)
    assert_close(model.predict(x, verbose=0), exact(x))


def test_each_eager_shape_gives_the_same_samples() -> None:
    x = normal(3, 6, 5, 8)
    whole = to_numpy(group_norm(ops.convert_to_tensor(x), 4))
    assert_close(whole, expected(x, 4))
    assert_close(to_numpy(group_norm(ops.convert_to_tensor(x[:1]), 4)), expected(x[:1], 4))
