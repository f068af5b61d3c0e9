"""Convolutions whose filters are standardised before use, for Keras 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from batchfree.errors import ArgumentError
from batchfree.keras._standardize_kernel import Variant, check_fan_in, check_variant, standardize_kernel

__all__ = ["WeightStandardizedConv1D", "WeightStandardizedConv2D", "WeightStandardizedConv3D"]


class _StandardizedConv:
    """What the three layers share: the variant, its epsilon, and the plain layer that computes the same."""

    _plain: Any
    variant: Variant
    epsilon: float

    def _standardize_with(self: Any, variant: Variant, epsilon: float | None) -> None:
        self.epsilon = check_variant(variant, epsilon)
        self.variant = variant

    def build(self: Any, input_shape: Sequence[int | None]) -> None:
        """Makes the raw kernel and bias, as the plain layer does.

        Raises:
            ArgumentError: the fan-in is 1.
        """
        super().build(input_shape)  # type: ignore[misc]
        try:
            check_fan_in(self._kernel.shape)
        except ArgumentError as error:
            raise ArgumentError(f"layer {self.name!r}: {error}") from None
        # Statistics are of the raw float32 kernel also in a mixed-precision call: only their result is rounded to half.
        self._kernel._autocast = False

    def standardized_kernel(self: Any) -> Any:
        """The filters as the convolution uses them, with the shape of `kernel`."""
        return standardize_kernel(self.kernel, self.variant, self.epsilon)

    def convolution_op(self: Any, inputs: Any, kernel: Any) -> Any:
        """The convolution of `inputs` with the standardised `kernel`: Keras's own hook, which `call` uses."""
        standardized = standardize_kernel(kernel, self.variant, self.epsilon)
        return super().convolution_op(inputs, ops.cast(standardized, inputs.dtype))  # type: ignore[misc]

    def fold(self: Any) -> Any:
        """A plain Keras convolution of the same function and name, for inference: its kernel is the standardised one.

        Raises:
            AttributeError: the layer is not built yet.
        """
        kernel = ops.convert_to_numpy(self.standardized_kernel())
        own = ("variant", "epsilon", "lora_rank", "lora_alpha")  # a low-rank update is in the kernel already
        plain = self._plain.from_config({key: value for key, value in self.get_config().items() if key not in own})
        plain.build(self.get_build_config()["input_shape"])
        plain.set_weights([kernel, ops.convert_to_numpy(self.bias)] if self.use_bias else [kernel])
        return plain

    def get_config(self: Any) -> dict[str, Any]:
        """The plain layer's, with variant and epsilon."""
        return {**super().get_config(), "variant": self.variant, "epsilon": self.epsilon}  # type: ignore[misc]


@keras.saving.register_keras_serializable(package="batchfree")
class WeightStandardizedConv1D(_StandardizedConv, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with standardised filters; see `WeightStandardizedConv2D`. Causal padding included."""

    _plain = keras.layers.Conv1D

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        variant: Variant = "bit",
        epsilon: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **kwargs,
        )
        self._standardize_with(variant, epsilon)

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """The convolution of `inputs` with the standardised `kernel`, causal padding included."""
        standardized = ops.cast(standardize_kernel(kernel, self.variant, self.epsilon), inputs.dtype)
        padding = self.padding
        if padding == "causal":
            inputs, padding = ops.pad(inputs, self._compute_causal_padding()), "valid"
        return ops.conv(inputs, standardized, list(self.strides), padding, self.data_format, list(self.dilation_rate))

    def call(self, inputs: Any) -> Any:
        """`inputs` convolved with the standardised filters."""
        # Conv1D's own call does not use the hook; that of its base, which Conv2D has, does.
        return super(keras.layers.Conv1D, self).call(inputs)


@keras.saving.register_keras_serializable(package="batchfree")
class WeightStandardizedConv2D(_StandardizedConv, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with standardised filters: `conv(x, (w - mean) / deviation) + bias`, statistics per filter.

    Weight Standardization makes what follows independent of each filter's mean and scale, which a norm right after it
    expects; a convolution that no norm follows should stay plain. The weights are those of `keras.layers.Conv2D`, in
    its order (`set_weights` takes them; a weights file names the class, so it wants the same one): the raw kernel is
    stored and trained.

    Args:
        filters ... bias_constraint: as in Keras; the fan-in `in / groups * prod(kernel_size)` must be at least 2.
        variant: "bit" or "qiao"; see `batchfree.keras.functional.standardize_kernel`.
        epsilon: the variant's published value where `None`.
        **kwargs: Keras's own for every convolution: name, dtype, trainable, lora_rank.

    Raises:
        ArgumentError: unknown variant, negative epsilon, or (when built) a fan-in of 1.

    Source: Qiao et al. 2019 (arXiv 1903.10520); Kolesnikov et al. 2020 (arXiv 1912.11370).

    >>> tuple(WeightStandardizedConv2D(8, 3, padding="same")(keras.random.normal((2, 16, 16, 3))).shape)
    (2, 16, 16, 8)
    """

    _plain = keras.layers.Conv2D

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        variant: Variant = "bit",
        epsilon: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **kwargs,
        )
        self._standardize_with(variant, epsilon)


@keras.saving.register_keras_serializable(package="batchfree")
class WeightStandardizedConv3D(_StandardizedConv, keras.layers.Conv3D):
    """`keras.layers.Conv3D` with standardised filters; see `WeightStandardizedConv2D`."""

    _plain = keras.layers.Conv3D

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        variant: Variant = "bit",
        epsilon: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **kwargs,
        )
        self._standardize_with(variant, epsilon)
