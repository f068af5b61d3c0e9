"""Moments of few, large groups on JAX: about a pivot only where they need one.

XLA writes x - pivot to memory between the subtraction and the sums; on a map as small and wide as (4, 7, 7, 2048) that
is a third of the norm's time. So x itself is summed first. Where a group's mean is within 2.6 deviations, that cancels
at most three bits of its variance, fewer than the pivot may (see `_group_norm`). If the mean of some group is not, sums
about the pivot are formed too, and that group takes them. Each group decides by its own sums alone, so what else is in
the batch changes no bit of it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

__all__ = ["moments"]

#: mean^2 <= 7 * var, as mean^2 <= this * E[x^2]: without an addition, which XLA would fuse in one place and not in
#: another, so that a group on the border would decide differently.
LARGEST_SHARE_OF_MEAN = 7 / 8


@functools.partial(jax.jit, static_argnums=1)  # without it, eager JAX would compile `lax.cond` anew at each call
def moments(x: Any, first: int) -> tuple[Any, Any, Any]:
    """A pivot per (sample, group), mean and mean square of x - pivot.

    Args:
        x: (N, *positions, G, channels per group), float.
        first: the pivot, where it is not 0, is the mean of the first positions up to this one in their first dimension.

    Returns:
        Three (N, G), dtype of `x`. The derivative takes the pivot for constant and never 0: a training step needs
        x - pivot in memory anyway.
    """
    pivot, total, squares = _sums(x, first)
    count = _values_per_group(x)
    return pivot, total / count, squares / count


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sums(x: Any, first: int) -> tuple[Any, ...]:
    """Pivot, sum of x - pivot and of its square."""
    dims, count = _reduced(x), _values_per_group(x)
    # Sums, not means, go through `lax.cond`: what is computed before it, XLA writes to memory, one kernel each.
    total, squares = x.sum(dims), jnp.square(x).sum(dims)
    plain = jnp.zeros_like(total), total, squares
    cancels = ~(jnp.square(total / count) <= squares / count * LARGEST_SHARE_OF_MEAN) | ~jnp.isfinite(squares)

    def where_needed() -> tuple[Any, ...]:
        return tuple(jnp.where(cancels, *pair) for pair in zip(_shifted_sums(x, first), plain, strict=True))

    return lax.cond(cancels.any(), where_needed, lambda: plain)


@_sums.defjvp
def _derivative(first: int, primals: tuple[Any], tangents: tuple[Any]) -> Any:
    return jax.jvp(lambda x: _shifted_sums(x, first), primals, tangents)


def _shifted_sums(x: Any, first: int) -> tuple[Any, ...]:
    dims = _reduced(x)
    pivot = lax.stop_gradient(x[:, :first].mean(dims))
    centred = x - jnp.expand_dims(pivot, dims)
    return pivot, centred.sum(dims), jnp.square(centred).sum(dims)


def _reduced(x: Any) -> tuple[int, ...]:
    """All dimensions but the samples and the groups."""
    return (*range(1, x.ndim - 2), x.ndim - 1)


def _values_per_group(x: Any) -> int:
    return math.prod(x.shape[1:]) // x.shape[-2]
