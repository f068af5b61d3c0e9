"""Functional and Sequential Keras models built with Batch Norm, without the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import keras

from batchfree.errors import ArgumentError, BatchfreeError, ConversionError
from batchfree.groups import check_values_per_group, resolve_num_groups
from batchfree.keras._calibrate import calibrate
from batchfree.keras._group_normalization import GroupNormalization
from batchfree.keras._weight_standardization import (
    WeightStandardizedConv1D,
    WeightStandardizedConv2D,
    WeightStandardizedConv3D,
)

__all__ = ["convert"]

#: What Batch Norm and Group Norm have in common.
SHARED_ARGUMENTS = (
    "name", "trainable", "dtype", "axis", "epsilon", "center", "scale", "beta_initializer", "gamma_initializer",
    "beta_regularizer", "gamma_regularizer", "beta_constraint", "gamma_constraint",
)  # fmt: skip

STANDARDIZED = {
    keras.layers.Conv1D: WeightStandardizedConv1D,
    keras.layers.Conv2D: WeightStandardizedConv2D,
    keras.layers.Conv3D: WeightStandardizedConv3D,
}


def convert(
    model: Any,
    *,
    groups: int | Literal["auto"] = "auto",
    channels_per_group: int | None = None,
    ws: bool = False,
    images: Any = None,
) -> Any:
    """A copy of `model` in which every Batch Norm is a Group Norm; `model` itself is left as it is.

    Names, weights, epsilon, dtype policies and `trainable` flags are kept. What was compiled into `model` (optimizer,
    loss, metrics) is not: compile the copy.

    Args:
        model: a built Functional or Sequential model, nested ones included; all of `keras.applications`.
        groups: G, 1 for Layer Norm, -1 for Instance Norm, or "auto": 16 channels per group, more where maps are tiny.
        channels_per_group: C / G, instead of `groups`.
        ws: whether every plain convolution that feeds nothing but Batch Norms becomes a `WeightStandardizedConv*D`. For
            training from scratch: it takes each filter's mean away, from which a trained network does not recover
            without training.
        images: a batch of unlabelled inputs (64 are nearly as good as 512), for a model that was *trained* with Batch
            Norm. Then each new norm's gamma and beta are fitted so that its output has, per channel, the mean and
            deviation that the old norm gave in inference; every new norm has a gamma and a beta. The batch goes
            through at once. Without images gamma and beta are copied, and a trained network loses its accuracy.

    Returns:
        A new model of the same kind.

    Raises:
        ConversionError: something cannot be converted; every reason is listed, by path.

    >>> network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(32, 3),
    ...                             keras.layers.BatchNormalization()])
    >>> [type(layer).__name__ for layer in convert(network, ws=True).layers]
    ['WeightStandardizedConv2D', 'GroupNormalization']
    """
    replacements, reasons = _plan(model, _Request(groups, channels_per_group, ws, needs_affine=images is not None))
    if reasons:
        listed = "\n".join(f"  {path or '(the model itself)'}: {reason}" for path, reason in reasons.items())
        raise ConversionError(f"{model.name!r} cannot be converted; nothing was changed:\n{listed}")
    if not any(kind is GroupNormalization for kind, _ in replacements.values()):
        raise ConversionError(
            f"{model.name!r} has no Batch Norm. A model with at least one keras.layers.BatchNormalization is needed. "
            "Use this model as it is."
        )
    copies: list[tuple[Any, Any]] = []

    def clone(layer: Any) -> Any:
        kind, config = replacements.get(id(layer), (type(layer), None))
        copy = kind.from_config(layer.get_config() if config is None else dict(config))
        copies.append((layer, copy))
        return copy

    converted = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for layer, copy in copies:
        _copy_weights(layer, copy)
    if images is not None:
        norms = [(layer, copy) for layer, copy in copies if isinstance(copy, GroupNormalization)]
        calibrate(model, converted, norms, images)
    return converted


class _Request(NamedTuple):
    groups: int | Literal["auto"]
    channels_per_group: int | None
    ws: bool
    needs_affine: bool


#: The class and configuration of what takes a layer's place, by the layer's id.
_Replacements: TypeAlias = dict[int, tuple[Any, dict[str, Any]]]


def _plan(model: Any, request: _Request) -> tuple[_Replacements, dict[str, BatchfreeError]]:
    """What takes the place of each layer, and why some cannot be replaced, by path."""
    replacements: _Replacements = {}
    reasons: dict[str, BatchfreeError] = {}
    outputs = _output_layers(model)
    for path, layer in _leaves(model):
        try:
            if isinstance(layer, keras.layers.BatchNormalization):
                replacements[id(layer)] = (GroupNormalization, _group_norm_config(layer, request))
            elif request.ws and id(layer) not in outputs and _feeds_only_norms(layer):
                replacements[id(layer)] = (_standardized_class(layer), layer.get_config())
            else:
                _refuse_hidden_norms(layer)
        except BatchfreeError as reason:
            reasons[path] = reason
    return replacements, reasons


def _leaves(model: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every layer that `clone_model` hands over one by one, with its path; `model` itself where it is subclassed."""
    if not _is_cloned_inside(model):
        yield path, model
        return
    for layer in model.layers:
        yield from _leaves(layer, f"{path}/{layer.name}" if path else layer.name)


def _output_layers(model: Any) -> set[int]:
    """Ids of the layers whose output leaves `model` or a nested model."""
    if not _is_cloned_inside(model):
        return set()
    own = {id(tensor._keras_history.operation) for tensor in keras.tree.flatten(model.outputs)}
    return own.union(*(_output_layers(layer) for layer in model.layers))


def _is_cloned_inside(layer: Any) -> bool:
    # Keras does not export the class that keras.Model(inputs, outputs) makes.
    return isinstance(layer, keras.Model) and any(
        base.__name__ in ("Functional", "Sequential") for base in type(layer).__mro__
    )


def _refuse_hidden_norms(layer: Any) -> None:
    hidden = [inner.name for inner in layer._flatten_layers(include_self=False) if _is_norm(inner)]
    if isinstance(layer, keras.Model) or hidden:
        inside = f"holds the Batch Norms {', '.join(map(repr, hidden))}" if hidden else "is subclassed"
        raise ConversionError(
            f"a {type(layer).__module__}.{type(layer).__qualname__} {inside}, and its own call decides how layers are "
            "used. Functional and Sequential models and their nested ones can be converted. Rebuild it as one of them."
        )


def _is_norm(layer: Any) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def _group_norm_config(norm: Any, request: _Request) -> dict[str, Any]:
    if type(norm) is not keras.layers.BatchNormalization:
        raise ConversionError(
            f"it is a {type(norm).__module__}.{type(norm).__qualname__}, whose own call would be lost. Replace it with "
            "a plain BatchNormalization first."
        )
    if not norm.built:
        raise ConversionError("it is not built, so its channels are not known. Call the model on an input first.")
    shape = norm.get_build_config()["input_shape"]
    axis = norm.axis % len(shape)
    spatial = [size for dim, size in enumerate(shape) if dim not in (0, axis)]
    known = None if None in spatial else spatial
    groups = _resolve(shape[axis], request, known)
    config = {key: value for key, value in norm.get_config().items() if key in SHARED_ARGUMENTS}
    if request.needs_affine:
        config["scale"] = config["center"] = True
    return {**config, "groups": groups}


def _resolve(channels: int, request: _Request, spatial: list[int] | None) -> int:
    try:
        groups = channels if request.groups == -1 else request.groups
        by_size = request.channels_per_group is not None and groups == "auto"
        resolved = resolve_num_groups(
            channels,
            None if by_size else groups,
            channels_per_group=request.channels_per_group,
            smallest_map=None if spatial is None else math.prod(spatial),
        )
        if spatial is not None:
            check_values_per_group(channels, resolved, spatial)
    except ArgumentError as error:
        raise ConversionError(str(error).replace("num_groups", "groups")) from None
    return resolved


def _feeds_only_norms(layer: Any) -> bool:
    """Whether `layer` is a linear convolution whose every output goes into a Batch Norm."""
    convolution = isinstance(layer, tuple(STANDARDIZED))
    if not convolution or layer.activation is not keras.activations.linear:
        return False
    users = [node.operation for node in layer._outbound_nodes]
    return bool(users) and all(_is_norm(user) for user in users)


def _standardized_class(conv: Any) -> Any:
    standardized = STANDARDIZED.get(type(conv))
    if standardized is None:
        raise ConversionError(
            f"a norm follows it, and it is a {type(conv).__module__}.{type(conv).__qualname__}, whose own call would "
            "be lost. Replace it with a plain convolution first, or convert without ws."
        )
    if math.prod(conv.kernel.shape[:-1]) < 2:
        raise ConversionError(
            f"its kernel of shape {tuple(conv.kernel.shape)} has a fan-in of 1, so each filter is its own mean. Weight "
            "Standardization needs a fan-in of at least 2. Convert without ws."
        )
    return standardized


def _copy_weights(layer: Any, copy: Any) -> None:
    if not isinstance(copy, keras.layers.Layer):
        return  # an operator of the graph, such as the sum in `x + 3`
    if not isinstance(copy, GroupNormalization):
        copy.set_weights(layer.get_weights())
        return
    for new, old in ((copy.gamma, layer.gamma), (copy.beta, layer.beta)):
        if new is not None and old is not None:
            new.assign(old)
