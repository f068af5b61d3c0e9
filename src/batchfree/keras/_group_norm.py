"""Group Norm as one function of tensors, written in `keras.ops` so that every backend runs the same formula.

How it reads little and stays exact. Group statistics are taken of d = x - p, with a pivot p per (sample, group): the
mean of the first of every 32 of the group's positions. A subset of a fraction f of some values has a mean within
sqrt((1 - f) / f) of their deviation from the mean of all of them, whatever the values are; so |mean(d)| is at most
5.6 deviations, and var = mean(d^2) - mean(d)^2 loses at most five bits. Without the pivot it would lose all of them
when the mean dwarfs the deviation, which is what Keras's torch backend does (keras.ops.moments); with the full mean as
pivot the input would be read once more. d itself is exact where x and p are near, so the output keeps its digits too.
Where JAX runs on a processor, few large groups have the pivot only if they need one: `_jax_moments`.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from batchfree.errors import ArgumentError
from batchfree.keras._channels import Channels, check_epsilon, find_channels, known_sizes, resolve_groups

__all__ = ["group_norm"]

#: The pivot is the mean of one position in so many.
POSITIONS_PER_PIVOT_SAMPLE = 32
#: From so many neighbouring channels per group on, JAX reduces them together with the positions (`_jax_moments`),
LONG_RUN = 64
#: up to so many values: XLA adds these up one after the other, and the rounding of a long sum shows in the output.
SHORT_SUM = 4096


class _Split(NamedTuple):
    """What is known before any tensor: hashable, so that one compiled function serves every call that shares it."""

    channels: Channels
    groups: int
    epsilon: float


def group_norm(
    x: Any,
    groups: int,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-3,
    activation: str | Callable[[Any], Any] | None = None,
    mask: Any = None,
) -> Any:
    """`x` normalised per (sample, group): act((x - mean) / sqrt(var + epsilon) * gamma + beta).

    Args:
        x: (N, *spatial, C), or C at `axis`; any float dtype. N and the spatial sizes may be unknown, N may be 0.
        groups: G, a divisor of C; 1 is Layer Norm over all but the batch, -1 (G = C) Instance Norm.
        gamma, beta: (C,), any float dtype; 1 and 0 where `None`.
        axis: the dimension of the channels, or several neighbouring ones which together are the channels.
        epsilon: added to the biased variance, inside the root; above 0.
        activation: a Keras name ("relu", "silu", "gelu", ...) or a function; applied before rounding to half.
        mask: bool, the shape of `x` without its channels or the beginning of it, for instance (N, time). Where it is
            False, values do not count in the statistics; they are scaled and shifted all the same, as in
            `keras.layers.BatchNormalization`.

    Returns:
        Shape and dtype of `x`. Statistics are held in float32; on TensorFlow in float64 for a float64 `x` (on JAX and
        torch, `keras.ops` itself computes in float32).

    Raises:
        ArgumentError: `axis`, `epsilon` or the mask's shape is not allowed.
        GroupError: C does not split into `groups`, or each group holds one value per sample.

    *Differs from* `keras.layers.GroupNormalization`: masked values do not count; a mean of 10,000 deviations costs no
    digits on any backend.

    Source: Wu & He 2018 (arXiv 1803.08494), Eq. 1 to 7; Chan, Golub & LeVeque 1983, shifted data.

    >>> tuple(group_norm(keras.random.normal((2, 8, 8, 32)), groups=4, activation="relu").shape)
    (2, 8, 8, 32)
    """
    x = ops.convert_to_tensor(x)
    check_epsilon(epsilon)
    shape = known_sizes(x)
    channels = find_channels(axis, shape)
    split = _Split(channels, resolve_groups(channels, shape, groups), float(epsilon))
    gamma, beta = (None if values is None else ops.convert_to_tensor(values) for values in (gamma, beta))
    normalized = _runner()(split, x, gamma, beta, _full_mask(mask, x, channels))
    return ops.cast(keras.activations.get(activation)(normalized), x.dtype)


def _normalize(split: _Split, x: Any, gamma: Any, beta: Any, mask: Any) -> Any:
    """The formula, without activation, in float32 (float64 where Keras has it)."""
    dtype = keras.backend.result_type(x.dtype, "float32")
    sizes = ops.shape(x)
    x, channel_dim = _merge_positions(ops.cast(x, dtype), split.channels)
    if mask is not None:
        mask, _ = _merge_positions(mask, split.channels._replace(size=1))
    positions = tuple(dim for dim in range(1, len(x.shape)) if dim != channel_dim)
    grouped = (1, split.groups, split.channels.size // split.groups)
    in_one = mask is None and _reduces_in_one(x.shape[1:], channel_dim, grouped[2])
    if in_one:
        x = ops.reshape(x, (*ops.shape(x)[:-1], *grouped[1:]))
    between = [1] * (channel_dim - 1)
    after = [1] * (len(positions) - len(between))

    def of_groups(values: Any, counted: Any = mask) -> Any:
        """Means per (sample, group), as (N, G, 1)."""
        if counted is not None:
            values = ops.where(counted, values, ops.zeros((), dtype))
        means = ops.mean(values, axis=positions) if positions else values
        return ops.mean(ops.reshape(means, (-1, *grouped[1:])), axis=2, keepdims=True)

    def wide(values: Any) -> Any:
        """(N, G, D) or (N, G, 1), shaped so that it broadcasts against x."""
        if in_one:
            return ops.reshape(values, (-1, *between, split.groups, values.shape[2]))
        return ops.reshape(
            ops.broadcast_to(values, (ops.shape(values)[0], *grouped[1:])), (-1, *between, split.channels.size, *after)
        )

    counted = None if mask is None else ops.mean(ops.cast(mask, dtype), axis=tuple(range(1, len(x.shape))))
    if counted is not None:  # the share of values that count; a sample in which none does keeps its zeros
        counted = ops.reshape(ops.where(counted == 0, ops.ones_like(counted), counted), (-1, 1, 1))
    share: Any = 1 if counted is None else counted

    if in_one:
        pivot, mean, square = _moments_in_one(x)
        centred = x - wide(ops.stop_gradient(pivot))
    else:
        pivot = of_groups(x) / share if mask is not None else of_groups(_first_positions(x, positions))
        centred = x - wide(ops.stop_gradient(pivot))
        mean, square = of_groups(centred) / share, of_groups(ops.square(centred)) / share
    variance = ops.maximum(square - ops.square(mean), 0)

    scale = ops.rsqrt(variance + split.epsilon) * _grouped_parameter(gamma, grouped, dtype, ops.ones)
    shift = _grouped_parameter(beta, grouped, dtype, ops.zeros) - mean * scale
    return ops.reshape(centred * wide(scale) + wide(shift), sizes)


def _reduces_in_one(sizes: Sequence[Any], channel_dim: int, channels_per_group: int) -> bool:
    """Whether positions and a group's channels are reduced at once, not one after the other.

    JAX's XLA is faster at that over a long run of neighbours, (4, 7, 7, 2048) with 64 channels per group. Over a
    shorter one it is slower: in a training step by an eighth on (8, 14, 14, 1024) with 32, several times on
    (8, 56, 56, 64) with 2. See `benchmarks.keras_group_norm`, which times these shapes. It is less exact: over 56 x 56
    positions of 64 channels the output may be off by 2e-4, where two stages keep it within 5e-6. All that is XLA's code
    for processors; on a GPU it might wait for `lax.cond`.
    """
    if keras.backend.backend() != "jax" or not 2 <= channel_dim == len(sizes) or channels_per_group < LONG_RUN:
        return False
    import jax

    positions = sizes[:-1]
    known = all(isinstance(size, int) for size in positions)
    return known and math.prod(positions) * channels_per_group <= SHORT_SUM and jax.default_backend() == "cpu"


def _moments_in_one(x: Any) -> list[Any]:
    """Pivot, mean and mean square about it, each (N, G, 1), of (N, *positions, G, channels per group)."""
    from batchfree.keras._jax_moments import moments

    return [ops.expand_dims(one, 2) for one in moments(x, _pivot_rows(x.shape[1]))]


def _grouped_parameter(values: Any, grouped: tuple[int, ...], dtype: str, default: Callable[..., Any]) -> Any:
    return default(grouped, dtype) if values is None else ops.reshape(ops.cast(values, dtype), grouped)


def _merge_positions(x: Any, channels: Channels) -> tuple[Any, int]:
    """`x` with one channel dimension, and where it is.

    TensorFlow gets all positions before and after the channels as one dimension each, which its XLA reduces faster than
    two. JAX's XLA is the other way round at batch 1, as on (1, 56, 56, 256), so there the spatial dimensions stay.
    """
    sizes = ops.shape(x)
    before, after = sizes[1 : channels.first], sizes[channels.last + 1 :]
    if keras.backend.backend() == "tensorflow":
        before, after = _as_one(before), _as_one(after)
    elif channels.first == channels.last:
        return x, channels.first
    return ops.reshape(x, (sizes[0], *before, channels.size, *after)), 1 + len(before)


def _as_one(sizes: Sequence[Any]) -> tuple[Any, ...]:
    return (functools.reduce(operator.mul, sizes),) if sizes else ()


def _first_positions(x: Any, positions: tuple[int, ...]) -> Any:
    """At least one position in so many, as one piece of each sample: a strided slice costs TensorFlow more."""
    if not positions:
        return x
    dim = positions[0]
    return x[(slice(None),) * dim + (slice(0, _pivot_rows(ops.shape(x)[dim])),)]


def _pivot_rows(size: Any) -> Any:
    """At least one in so many."""
    return -(-size // POSITIONS_PER_PIVOT_SAMPLE)


def _full_mask(mask: Any, x: Any, channels: Channels) -> Any:
    """The mask with every dimension of `x`, its channel dimensions of size 1; `None` stays."""
    if mask is None:
        return None
    mask = ops.cast(mask, "bool")
    spatial = (*x.shape[: channels.first], *x.shape[channels.last + 1 :])
    agree = len(mask.shape) <= len(spatial) and all(
        given is None or wanted is None or given == wanted for given, wanted in zip(mask.shape, spatial, strict=False)
    )
    if not agree:
        raise ArgumentError(
            f"a mask of shape {tuple(mask.shape)} was given for an input of shape {tuple(x.shape)}. Allowed: "
            f"{spatial}, which is the input without its channels, or its beginning. Pass one boolean per position."
        )
    sizes = list(ops.shape(x))
    wide = ops.reshape(mask, (*ops.shape(mask), *(1,) * (len(spatial) - len(mask.shape))))
    channel_dims = range(channels.first, channels.last + 1)
    for dim in channel_dims:
        wide, sizes[dim] = ops.expand_dims(wide, dim), 1
    return ops.broadcast_to(wide, sizes)


def _runner() -> Callable[[_Split, Any, Any, Any, Any], Any]:
    """`_normalize`, or under eager TensorFlow the same as one graph."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if tf.executing_eagerly():
            return _normalize_as_graph
    return _normalize


def _normalize_as_graph(split: _Split, x: Any, gamma: Any, beta: Any, mask: Any) -> Any:
    # Thirty eager TensorFlow operators cost more than the arithmetic of a small map. Not XLA, which would compile anew
    # for each image size.
    tensors = [one for one in (x, gamma, beta, mask) if one is not None]
    described = tuple((keras.backend.standardize_dtype(one.dtype), len(one.shape)) for one in tensors)
    run = _graph(split, described, (gamma is not None, beta is not None, mask is not None))
    return run(*tensors)


@functools.lru_cache(maxsize=1024)
def _graph(split: _Split, described: tuple[tuple[str, int], ...], given: tuple[bool, bool, bool]) -> Any:
    """A `tf.function` that is traced once: it fixes the channels, and neither the batch nor the spatial sizes."""
    import tensorflow as tf

    signature = [tf.TensorSpec([None] * rank, dtype) for dtype, rank in described]
    # A partial, not a closure: TensorFlow counts traces by code object and would warn that one function is retraced.
    return tf.function(functools.partial(_normalize_given, split, given), autograph=False, input_signature=signature)


def _normalize_given(split: _Split, given: tuple[bool, bool, bool], x: Any, *others: Any) -> Any:
    remaining = iter(others)
    gamma, beta, mask = (next(remaining) if one else None for one in given)
    return _normalize(split, x, gamma, beta, mask)
