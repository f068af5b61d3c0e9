"""Values and gradients on whatever backend this process runs, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

Array = npt.NDArray[Any]
BACKEND: str = keras.backend.backend()


def to_numpy(tensor: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(tensor))


def value_and_gradients(
    function: Callable[..., Any], inputs: Sequence[Array], upstream: Array, *, compiled: bool = False
) -> tuple[Array, list[Array]]:
    """`function(*inputs)` and the gradients of sum(function(*inputs) * upstream) with respect to each input."""
    tensors = [ops.convert_to_tensor(one) for one in inputs]
    pull = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[BACKEND]
    y, gradients = pull(function, tensors, ops.convert_to_tensor(upstream), compiled)
    return to_numpy(y), [to_numpy(one) for one in gradients]


def _tensorflow(function: Any, tensors: list[Any], upstream: Any, compiled: bool) -> tuple[Any, list[Any]]:
    import tensorflow as tf

    def run(*tensors: Any) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            y = function(*tensors)
        return y, tape.gradient(y, tensors, output_gradients=upstream)

    return (tf.function(run, jit_compile=True, autograph=False) if compiled else run)(*tensors)


def _jax(function: Any, tensors: list[Any], upstream: Any, compiled: bool) -> tuple[Any, list[Any]]:
    import jax

    def run(*tensors: Any) -> tuple[Any, list[Any]]:
        y, pullback = jax.vjp(function, *tensors)
        return y, list(pullback(upstream))

    if not compiled:
        return run(*tensors)
    jax.config.update("jax_disable_most_optimizations", False)  # conftest.py turns it on for what stays eager
    try:
        return jax.jit(run)(*tensors)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


def _torch(function: Any, tensors: list[Any], upstream: Any, compiled: bool) -> tuple[Any, list[Any]]:
    import torch

    leaves = [one.detach().clone().requires_grad_() for one in tensors]
    y = function(*leaves)
    return y, list(torch.autograd.grad(y, leaves, upstream))
