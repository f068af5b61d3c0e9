"""Weight Standardization as one function of a kernel, and the checks of its arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import keras
from keras import ops

from batchfree.errors import ArgumentError, unknown_name
from batchfree.keras._channels import known_sizes

__all__ = ["Variant", "check_fan_in", "check_variant", "standardize_kernel"]

#: Published checkpoints differ: see `standardize_kernel`.
Variant: TypeAlias = Literal["bit", "qiao"]

DEFAULT_EPSILON: dict[str, float] = {"bit": 1e-10, "qiao": 1e-5}


def standardize_kernel(kernel: Any, variant: Variant = "bit", epsilon: float | None = None) -> Any:
    """Each output filter of `kernel` with mean 0 and deviation 1 over its fan-in.

    Args:
        kernel: (*window, in / groups, out), Keras's layout; fan-in (all but the last dimension) at least 2.
        variant: "bit": `(w - mean) / sqrt(var + epsilon)`, biased variance; "qiao": `(w - mean) / (std + epsilon)`,
            unbiased deviation. They differ by a factor sqrt(fan-in / (fan-in - 1)): 6 % for a depthwise 3x3.
        epsilon: 1e-10 for "bit" and 1e-5 for "qiao" where `None`, as published; not negative.

    Returns:
        Shape and dtype of `kernel`; statistics are held in at least float32.

    Raises:
        ArgumentError: unknown variant, negative epsilon, or a fan-in of 1, whose filters are their own mean.

    Source: Kolesnikov et al. 2020 (BiT, arXiv 1912.11370) and Qiao et al. 2019 (arXiv 1903.10520; their code).

    >>> tuple(standardize_kernel(keras.random.normal((3, 3, 16, 32))).shape)
    (3, 3, 16, 32)
    """
    kernel = ops.convert_to_tensor(kernel)
    epsilon = check_variant(variant, epsilon)
    shape = known_sizes(kernel)
    check_fan_in(shape)
    fan_in = math.prod(shape[:-1])
    wide = ops.cast(kernel, keras.backend.result_type(kernel.dtype, "float32"))
    axes = tuple(range(len(kernel.shape) - 1))
    centred = wide - ops.mean(wide, axis=axes, keepdims=True)
    squares = ops.sum(ops.square(centred), axis=axes, keepdims=True)
    if variant == "bit":
        return ops.cast(centred * ops.rsqrt(squares / fan_in + epsilon), kernel.dtype)
    # The root has no slope at 0: a constant filter must get 0 and a finite gradient, not NaN.
    floor = float(keras.config.epsilon()) ** 4
    deviation = ops.sqrt(ops.maximum(squares / (fan_in - 1), floor))
    return ops.cast(centred / (deviation + epsilon), kernel.dtype)


def check_variant(variant: str, epsilon: float | None) -> float:
    """The epsilon to use: the one given, or where `None` the variant's published one.

    Raises:
        ArgumentError: unknown variant or negative epsilon.
    """
    if variant not in DEFAULT_EPSILON:
        raise ArgumentError(unknown_name("variant of Weight Standardization", str(variant), DEFAULT_EPSILON))
    if epsilon is None:
        return DEFAULT_EPSILON[variant]
    if not epsilon >= 0:
        raise ArgumentError(
            f"epsilon={epsilon!r} was given. It must not be negative. Leave it out for the published value."
        )
    return epsilon


def check_fan_in(shape: Sequence[int]) -> None:
    """Refuses a kernel of `shape` (*window, in / groups, out) whose filters are their own mean.

    Raises:
        ArgumentError: the fan-in, all sizes but the last, is 1.
    """
    fan_in = math.prod(shape[:-1])
    if fan_in < 2:
        raise ArgumentError(
            f"a kernel of shape {tuple(shape)} has a fan-in of {fan_in}: each filter is its own mean, so all of them "
            "would become zero. Weight Standardization needs a fan-in of at least 2. Keep this convolution plain."
        )
