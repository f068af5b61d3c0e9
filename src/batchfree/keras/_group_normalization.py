"""The Group Norm layer for Keras 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from batchfree.errors import ArgumentError, GroupError
from batchfree.keras._channels import check_epsilon, check_groups, find_channels, resolve_groups
from batchfree.keras._group_norm import group_norm

__all__ = ["GroupNormalization"]

#: Keras's default, which `channels_per_group` replaces.
DEFAULT_GROUPS = 32


@keras.saving.register_keras_serializable(package="batchfree")
class GroupNormalization(keras.layers.Layer):
    """Group Norm with Keras's own arguments: act((x - mean) / sqrt(var + epsilon) * gamma + beta).

    Mean and biased variance per (sample, group), over the group's channels and all other dimensions but the batch.

    Args:
        groups: G, a divisor of the C channels; 1 is Layer Norm, -1 one group per channel (Instance Norm).
        axis: the dimension of the channels; several neighbouring ones together are the channels, and gamma and beta
            have one value for each.
        epsilon: added to the variance, inside the root; above 0.
        center: whether there is a `beta`.
        scale: whether there is a `gamma`.
        beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint:
            as in Keras.
        activation: a Keras name or a function, applied before rounding to half.
        channels_per_group: C / G, instead of `groups`, which then keeps its default.
        **kwargs: Keras's own for every layer: name, dtype, trainable, activity_regularizer.

    Input: float, 2 to 5 or more dimensions; batch and spatial sizes may be unknown, the batch may be 0. A mask that
    Keras passes on is honoured: masked values do not count in the statistics.

    Output: shape of the input, the layer's compute dtype. Statistics and affine in at least float32.

    Raises:
        ArgumentError: epsilon, or (when built) `axis` or the size of the channels, is not allowed.
        GroupError: the channels do not split, or each group would hold one value per sample.

    *Differs from* `keras.layers.GroupNormalization`: see docs/keras.md for the list. Its weights load.

    Source: Wu & He 2018 (arXiv 1803.08494).

    >>> tuple(GroupNormalization(8, activation="relu")(keras.random.normal((2, 16, 16, 64))).shape)
    (2, 16, 16, 64)
    """

    def __init__(
        self,
        groups: int = DEFAULT_GROUPS,
        axis: int | Sequence[int] = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        *,
        activation: str | Callable[[Any], Any] | None = None,
        channels_per_group: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_groups(groups)
        if channels_per_group is not None and groups != DEFAULT_GROUPS:
            raise GroupError(
                f"layer {self.name!r}: both groups={groups} and channels_per_group={channels_per_group} were given. "
                "One of them decides the split. Drop the other."
            )
        self._with_name(check_epsilon, epsilon)
        self.supports_masking = True
        self.autocast = False  # a float32 input above float16's range must reach the float32 statistics (keras#22586)
        self.groups = groups
        self.channels_per_group = channels_per_group
        self.axis = axis if isinstance(axis, int) else list(axis)
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Checks the split against `input_shape` and makes gamma and beta, both (C,)."""
        channels = self._with_name(find_channels, self.axis, input_shape)
        self._resolved_groups: int = self._with_name(
            resolve_groups, channels, input_shape, self.groups, self.channels_per_group
        )
        known = {dim: input_shape[dim] for dim in range(channels.first, channels.last + 1)}
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes=known)
        self.gamma: Any = self._add_parameter("gamma", channels.size) if self.scale else None
        self.beta: Any = self._add_parameter("beta", channels.size) if self.center else None
        super().build(input_shape)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """`inputs` normalised; where `mask` is False, values do not count in the statistics."""
        outputs = self._with_name(self._normalize, inputs, mask)
        return ops.cast(outputs, self.compute_dtype)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Sequence[int | None]:
        """`input_shape`, once `axis` is known to lie in it."""
        self._with_name(find_channels, self.axis, input_shape)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Every argument, as given: `groups=-1` stays -1."""
        return {
            **super().get_config(),
            "groups": self.groups,
            "axis": self.axis,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": keras.initializers.serialize(self.beta_initializer),
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
            "beta_regularizer": keras.regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": keras.regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": keras.constraints.serialize(self.beta_constraint),
            "gamma_constraint": keras.constraints.serialize(self.gamma_constraint),
            "activation": keras.activations.serialize(self.activation),
            "channels_per_group": self.channels_per_group,
        }

    def _normalize(self, inputs: Any, mask: Any) -> Any:
        return group_norm(
            inputs,
            self._resolved_groups,
            self.gamma,
            self.beta,
            axis=self.axis,
            epsilon=self.epsilon,
            activation=self.activation,
            mask=mask,
        )

    def _add_parameter(self, name: str, size: int) -> Any:
        return self.add_weight(
            shape=(size,),
            name=name,
            initializer=getattr(self, f"{name}_initializer"),
            regularizer=getattr(self, f"{name}_regularizer"),
            constraint=getattr(self, f"{name}_constraint"),
            autocast=False,
        )

    def _with_name(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)`, whose refusals then begin with this layer's name."""
        try:
            return function(*arguments)
        except ArgumentError as error:
            raise type(error)(f"layer {self.name!r}: {error}") from None
