"""The specification: every operation of this library in float64 NumPy, readable beside the papers.

Slow and obvious on purpose; kernels and layers are compared with it. Symbols, as in Wu & He 2018
(arXiv 1803.08494): n samples, c channels, g groups, s spatial elements, m = c / g * s values per group. Inputs are
(n, c, *spatial); every result is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from batchfree.errors import ArgumentError, unknown_name
from batchfree.groups import resolve_num_groups

__all__ = [
    "Gradients",
    "Moments",
    "activation_derivative",
    "apply_activation",
    "batch_norm",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "layer_norm",
    "merge_moments",
    "moments",
    "standardize_weight",
    "standardize_weight_backward",
]

Array: TypeAlias = npt.NDArray[np.float64]
Variant: TypeAlias = Literal["bit", "qiao"]


class Moments(NamedTuple):
    """Mean and biased variance of `size` values, one pair per (sample, group)."""

    size: int  # values per group: m
    mean: Array  # (n, g)
    variance: Array  # (n, g)


class Gradients(NamedTuple):
    """What flows back through group norm; `None` where there was no such input."""

    input: Array
    weight: Array | None
    bias: Array | None
    residual: Array | None


def moments(x: npt.ArrayLike, num_groups: int) -> Moments:
    """Statistics per (sample, group): mu = sum(x) / m, var = sum((x - mu)^2) / m (Wu & He 2018, Eq. 2 and 7).

    The variance is biased (divided by m, not m - 1) and centred: never E[x^2] - E[x]^2, which cancels.
    """
    grouped = _grouped(x, num_groups)
    mean = grouped.mean(axis=2)
    centred = grouped - mean[:, :, None]
    return Moments(grouped.shape[2], mean, (centred**2).mean(axis=2))


def merge_moments(*parts: Moments) -> Moments:
    """Moments of the union of disjoint parts, from the parts' moments alone (Chan, Golub & LeVeque 1979, Eq. 2.1).

    m = sum m_i, mu = sum m_i mu_i / m, var = sum m_i (var_i + (mu_i - mu)^2) / m.

    Raises:
        ArgumentError: no part was given.
    """
    if not parts:
        raise ArgumentError("no moments were given. At least one is needed. Pass the moments of every part.")
    size = sum(part.size for part in parts)
    mean = sum((part.size / size * part.mean for part in parts), start=np.zeros_like(parts[0].mean))
    variance = sum(
        (part.size / size * (part.variance + (part.mean - mean) ** 2) for part in parts),
        start=np.zeros_like(mean),
    )
    return Moments(size, mean, variance)


def group_norm(
    x: npt.ArrayLike,
    num_groups: int,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: npt.ArrayLike | None = None,
) -> Array:
    """y = act((x - mu) / sqrt(var + eps) * weight + bias [+ residual]) (Wu & He 2018, Eq. 1 and 6).

    Args:
        x: (n, c, *spatial).
        num_groups: g, a divisor of c.
        weight, bias: (c,); 1 and 0 where `None`.
        eps: added to the variance, inside the root.
        activation: `None`, "relu", "silu", "gelu" or "gelu_tanh".
        residual: shape of `x`, added before the activation.

    Returns:
        Shape of `x`, float64.
    """
    return apply_activation(activation, _before_activation(x, num_groups, weight, bias, eps, residual))


def group_norm_backward(
    grad_output: npt.ArrayLike,
    x: npt.ArrayLike,
    num_groups: int,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: npt.ArrayLike | None = None,
) -> Gradients:
    """Gradients of `group_norm`, from the chain rule by hand.

    With xhat = (x - mu) * rstd, dz = dy * act'(z) and dxhat = dz * weight:
    dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)), means over the m values of a group;
    dweight = sum(dz * xhat) and dbias = sum(dz), over samples and space; dresidual = dz.
    """
    x_array = np.asarray(x, np.float64)
    dz = np.asarray(grad_output, np.float64)
    if activation is not None:
        z = _before_activation(x, num_groups, weight, bias, eps, residual)
        dz = dz * activation_derivative(activation, z)

    statistics = moments(x_array, num_groups)
    rstd = 1 / np.sqrt(statistics.variance + eps)[:, :, None]
    xhat = (_grouped(x_array, num_groups) - statistics.mean[:, :, None]) * rstd
    dxhat = _grouped(dz * _per_channel(weight, x_array, 1.0), num_groups)
    dx = rstd * (dxhat - dxhat.mean(axis=2, keepdims=True) - xhat * (dxhat * xhat).mean(axis=2, keepdims=True))
    other_axes = (0, *range(2, x_array.ndim))
    return Gradients(
        input=dx.reshape(x_array.shape),
        weight=None if weight is None else (dz * xhat.reshape(x_array.shape)).sum(axis=other_axes),
        bias=None if bias is None else dz.sum(axis=other_axes),
        residual=None if residual is None else dz,
    )


def batch_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    eps: float = 1e-5,
) -> Array:
    """Batch Norm with this batch's statistics: per channel, over samples and space (Ioffe & Szegedy 2015, Alg. 1)."""
    array = np.asarray(x, np.float64)
    return _textbook(array, (0, *range(2, array.ndim)), weight, bias, eps)


def layer_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    eps: float = 1e-5,
) -> Array:
    """Layer Norm as vision has it: per sample, over (c, *spatial), affine per channel (Wu & He 2018, Eq. 4)."""
    array = np.asarray(x, np.float64)
    return _textbook(array, tuple(range(1, array.ndim)), weight, bias, eps)


def instance_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    eps: float = 1e-5,
) -> Array:
    """Instance Norm: per sample and channel, over space (Ulyanov et al. 2016; Wu & He 2018, Eq. 5)."""
    array = np.asarray(x, np.float64)
    return _textbook(array, tuple(range(2, array.ndim)), weight, bias, eps)


def standardize_weight(weight: npt.ArrayLike, variant: Variant = "bit", eps: float | None = None) -> Array:
    """Weight Standardization: each output filter with mean 0 and deviation 1 over its fan-in.

    Args:
        weight: (out, in / groups, *kernel).
        variant: `"bit"`: (w - mu) / sqrt(var + eps), biased variance (Kolesnikov et al. 2020, arXiv 1912.11370);
            `"qiao"`: (w - mu) / (std + eps), unbiased deviation (Qiao et al. 2019, arXiv 1903.10520, their code).
        eps: 1e-10 for `"bit"` and 1e-5 for `"qiao"` where `None`.
    """
    centred, _, divisor = _filters(weight, variant, eps)
    return (centred / divisor).reshape(np.shape(weight))


def standardize_weight_backward(
    grad_output: npt.ArrayLike, weight: npt.ArrayLike, variant: Variant = "bit", eps: float | None = None
) -> Array:
    """Gradient of `standardize_weight`.

    Both variants are (w - mu) / d with d a function of the centred sum of squares q. By the chain rule, per filter,
    dw = (P dy - 2 d'(q) / d * centred * sum(dy * centred)) / d, where P removes the mean.
    """
    centred, deviation, divisor = _filters(weight, variant, eps)
    dy = np.asarray(grad_output, np.float64).reshape(centred.shape)
    fan_in = centred.shape[1]
    # 2 d'(q): sqrt(q/m + eps) gives 1 / (m d); sqrt(q / (m - 1)) + eps gives 1 / ((m - 1) std).
    two_slope = 1 / (fan_in * divisor) if variant == "bit" else 1 / ((fan_in - 1) * deviation)
    along = (dy * centred).sum(axis=1, keepdims=True)
    dw = (dy - dy.mean(axis=1, keepdims=True) - two_slope / divisor * centred * along) / divisor
    return dw.reshape(np.shape(weight))


def apply_activation(name: str | None, z: Array) -> Array:
    """act(z). "gelu" is z * Phi(z) with the error function, "gelu_tanh" its tanh form (Hendrycks & Gimpel 2016)."""
    return _activation(name)[0](z)


def activation_derivative(name: str | None, z: Array) -> Array:
    """d act / dz; 0 at z = 0 for "relu", as autograd has it."""
    return _activation(name)[1](z)


def _textbook(
    x: Array, axes: tuple[int, ...], weight: npt.ArrayLike | None, bias: npt.ArrayLike | None, eps: float
) -> Array:
    mean = x.mean(axis=axes, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * _per_channel(weight, x, 1.0) + _per_channel(bias, x, 0.0)


def _before_activation(
    x: npt.ArrayLike,
    num_groups: int,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    eps: float,
    residual: npt.ArrayLike | None,
) -> Array:
    array = np.asarray(x, np.float64)
    statistics = moments(array, num_groups)
    grouped = _grouped(array, num_groups) - statistics.mean[:, :, None]
    xhat = (grouped / np.sqrt(statistics.variance + eps)[:, :, None]).reshape(array.shape)
    z = xhat * _per_channel(weight, array, 1.0) + _per_channel(bias, array, 0.0)
    return z if residual is None else z + np.asarray(residual, np.float64)


def _grouped(x: npt.ArrayLike, num_groups: int) -> Array:
    """(n, c, *spatial) as (n, g, m): a group is c / g neighbouring channels (Wu & He 2018, Eq. 7)."""
    array = np.asarray(x, np.float64)
    groups = resolve_num_groups(array.shape[1], num_groups)
    return array.reshape(array.shape[0], groups, math.prod(array.shape[1:]) // groups)


def _per_channel(values: npt.ArrayLike | None, x: Array, default: float) -> Array:
    if values is None:
        return np.full((1,) * x.ndim, default)
    return np.asarray(values, np.float64).reshape(1, -1, *(1,) * (x.ndim - 2))


def _filters(weight: npt.ArrayLike, variant: str, eps: float | None) -> tuple[Array, Array, Array]:
    """Centred filters (out, fan-in), their deviation and what they are divided by (out, 1)."""
    array = np.asarray(weight, np.float64)
    filters = array.reshape(array.shape[0], -1)
    centred = filters - filters.mean(axis=1, keepdims=True)
    squares = (centred**2).sum(axis=1, keepdims=True)
    fan_in = filters.shape[1]
    if fan_in < 2:
        raise ArgumentError(
            f"a weight of shape {array.shape} has a fan-in of {fan_in}: each filter is its own mean. At least 2 are "
            f"needed. Keep this convolution plain."
        )
    if variant == "bit":
        deviation = np.sqrt(squares / fan_in)
        return centred, deviation, np.sqrt(squares / fan_in + (1e-10 if eps is None else eps))
    if variant == "qiao":
        deviation = np.sqrt(squares / (fan_in - 1))
        return centred, deviation, deviation + (1e-5 if eps is None else eps)
    raise ArgumentError(unknown_name("variant of Weight Standardization", variant, ["bit", "qiao"]))


def _sigmoid(z: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * z))  # no overflow for any z


def _phi(z: Array) -> Array:
    """The normal distribution function, by the error function of the C library (NumPy has none)."""
    erf: Any = np.vectorize(math.erf, otypes=[np.float64])
    return 0.5 * (1 + erf(z / math.sqrt(2)))


def _gelu_derivative(z: Array) -> Array:
    return _phi(z) + z * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


def _tanh_argument(z: Array) -> Array:
    return math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


def _gelu_tanh_derivative(z: Array) -> Array:
    tanh = np.tanh(_tanh_argument(z))
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return 0.5 * (1 + tanh) + 0.5 * z * (1 - tanh**2) * slope


_Function: TypeAlias = Callable[[Array], Array]

# Name: (the function, its derivative).
_ACTIVATIONS: dict[str | None, tuple[_Function, _Function]] = {
    None: (lambda z: z, np.ones_like),
    "relu": (lambda z: np.maximum(z, 0.0), lambda z: (z > 0).astype(np.float64)),
    "silu": (lambda z: z * _sigmoid(z), lambda z: _sigmoid(z) * (1 + z * (1 - _sigmoid(z)))),
    "gelu": (lambda z: z * _phi(z), _gelu_derivative),
    "gelu_tanh": (lambda z: 0.5 * z * (1 + np.tanh(_tanh_argument(z))), _gelu_tanh_derivative),
}


def _activation(name: str | None) -> tuple[_Function, _Function]:
    if name not in _ACTIVATIONS:
        raise ArgumentError(unknown_name("activation", str(name), [str(key) for key in _ACTIVATIONS]))
    return _ACTIVATIONS[name]
