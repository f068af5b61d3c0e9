"""Fitting a converted model's affine parameters to the Batch Norms it replaced, on a few unlabelled images.

For each norm in forward order: t = the old norm's inference output in the original model, z = the new norm's
normalised input (no affine) in the converted model so far; then per channel, with the old gamma's sign,
gamma = std(t) / std(z) and beta = mean(t) - gamma * mean(z). One forward pass of each model: every norm is fitted when
the pass reaches it, so that the next one sees its fitted output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from batchfree.errors import ArgumentError
from batchfree.keras._group_norm import group_norm

__all__ = ["calibrate"]

_Moments = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def calibrate(original: Any, converted: Any, norms: Sequence[tuple[Any, Any]], images: Any) -> None:
    """Sets gamma and beta of every new norm in place.

    Args:
        original: the model with Batch Norm; run in inference mode, left as it is.
        converted: the same model with Group Norm.
        norms: (old, new) for every norm. Where one is used several times, its first use in forward order decides.
        images: one batch of the models' input, of any labels or none.

    Raises:
        ArgumentError: `images` is empty, or gives a NaN or infinity somewhere in the original.
    """
    if any(ops.shape(one)[0] == 0 for one in keras.tree.flatten(images)):
        raise ArgumentError("no images were given. At least one is needed, and 64 are enough. Pass a batch of inputs.")
    targets: dict[int, _Moments] = {}
    fitted: set[int] = set()

    def record(old: Any, new: Any, inputs: Any, outputs: Any) -> Any:
        if id(new) not in targets:
            targets[id(new)] = _moments(old, outputs)
        return outputs

    def fit(old: Any, new: Any, inputs: Any, outputs: Any) -> Any:
        if id(new) in fitted:
            return outputs
        fitted.add(id(new))
        z = group_norm(inputs, new.groups, axis=new.axis, epsilon=new.epsilon)
        _fit(old, new, _moments(new, z), targets[id(new)])
        return new.__class__.call(new, inputs)

    for model, watched, then in ((original, 0, record), (converted, 1, fit)):
        with ExitStack() as watching:
            for pair in norms:
                watching.enter_context(_after_call(pair[watched], _bound(then, *pair)))
            model(images, training=False)


def _bound(then: Callable[..., Any], old: Any, new: Any) -> Callable[[Any, Any], Any]:
    return lambda inputs, outputs: then(old, new, inputs, outputs)


@contextmanager
def _after_call(layer: Any, then: Callable[[Any, Any], Any]) -> Iterator[None]:
    """`layer` gives `then(inputs, outputs)` in place of its outputs. Keras has no hooks; this leaves nothing behind."""
    call = layer.call

    def watched(inputs: Any, *arguments: Any, **options: Any) -> Any:
        return then(inputs, call(inputs, *arguments, **options))

    layer.call = watched
    try:
        yield
    finally:
        del layer.call


def _moments(norm: Any, outputs: Any) -> _Moments:
    """Mean and deviation per channel, over the batch and space."""
    values = np.asarray(ops.convert_to_numpy(ops.cast(outputs, "float32")), np.float64)
    axis = norm.axis % values.ndim
    others = tuple(dim for dim in range(values.ndim) if dim != axis)
    if not np.isfinite(values).all():
        raise ArgumentError(
            f"the images give NaN or infinity at the norm {norm.name!r}. Every value must be finite. Pass images "
            "prepared as for training."
        )
    return values.mean(axis=others), values.std(axis=others)


def _fit(old: Any, new: Any, normalized: _Moments, target: _Moments) -> None:
    sign = 1.0 if old.gamma is None else np.where(ops.convert_to_numpy(old.gamma) < 0, -1.0, 1.0)
    live = normalized[1] > 0  # a channel without variation on these images keeps its gamma
    copied = np.asarray(ops.convert_to_numpy(new.gamma), np.float64)
    gamma = np.where(live, sign * target[1] / np.where(live, normalized[1], 1.0), copied)
    new.gamma.assign(gamma)
    new.beta.assign(target[0] - gamma * normalized[0])
