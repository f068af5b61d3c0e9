"""Convolutions whose filters are standardised before use."""

from __future__ import annotations

import functools
import math
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from batchfree.errors import ArgumentError, unknown_name
from batchfree.torch import _eligibility, _filter_kernel, _formula, _operators
from batchfree.torch._group_norm import check_size

__all__ = ["StandardizedConv", "Variant", "WSConv1d", "WSConv2d", "WSConv3d", "standardize_weight"]

#: Published checkpoints differ: see `standardize_weight`.
Variant: TypeAlias = Literal["bit", "qiao"]

DEFAULT_EPS: dict[str, float] = {"bit": 1e-10, "qiao": 1e-5}


def standardize_weight(weight: Tensor, variant: Variant = "bit", eps: float | None = None) -> Tensor:
    """Each output filter of `weight` with mean 0 and deviation 1 over its fan-in.

    Args:
        weight: (out, in / groups, *kernel), fan-in (all but the first dimension) at least 2.
        variant: "bit": `(w - mean) / sqrt(var + eps)`, biased variance; "qiao": `(w - mean) / (std + eps)`, unbiased
            deviation. They differ by a factor sqrt(fan-in / (fan-in - 1)): 6 % for a depthwise 3x3.
        eps: 1e-10 for "bit" and 1e-5 for "qiao" where `None`, as published; not negative.

    Returns:
        Shape and dtype of `weight`.

    Raises:
        ArgumentError: unknown variant, negative eps, or a fan-in of 1, whose filters are their own mean.

    Source: Kolesnikov et al. 2020 (BiT, arXiv 1912.11370) and Qiao et al. 2019 (arXiv 1903.10520; their code).

    >>> standardize_weight(torch.randn(8, 3, 3, 3)).mean(dim=(1, 2, 3)).abs().max() < 1e-6
    tensor(True)
    """
    if _eligibility.is_plain_eager() and _eligibility.is_readable(weight):
        strides = weight.is_contiguous() or weight.stride()
        plan = _plan(weight.shape, strides, weight.dtype, variant, eps, torch.get_num_threads())
        if plan is not None:
            return _filter_kernel.standardize_weight(weight, plan)
    eps = _check_arguments(weight, variant, eps)
    if _operators.is_wanted() and _operators.serves(weight):
        return _operators.standardize_weight(weight, variant, eps)
    return _formula.standardize_weight(weight, variant, eps)


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: torch.Size,
    strides: tuple[int, ...] | Literal[True],
    dtype: torch.dtype,
    variant: str,
    eps: float | None,
    threads: int,
) -> _filter_kernel.Plan | None:
    """Checks and prepares a call, once for all calls of one kind, as `_group_norm` does."""
    weight = _eligibility.without_values(shape, strides, dtype)
    eps = _check_arguments(weight, variant, eps)
    return _filter_kernel.Plan(weight, variant, eps, threads) if _eligibility.serves_kind(weight) else None


WSConvT = TypeVar("WSConvT", bound="StandardizedConv")


class StandardizedConv(nn.modules.conv._ConvNd):
    """What the three convolutions share: the variant, its eps, and the plain layer that computes the same."""

    plain: type[nn.Conv1d | nn.Conv2d | nn.Conv3d]
    variant: Variant
    eps: float
    gain: nn.Parameter | None
    offset: nn.Parameter | None

    def _standardize_with(self, variant: Variant, eps: float | None, affine: bool) -> None:
        self.eps = _check_variant(variant, eps)
        self.variant = variant
        weight = self.weight
        _check_fan_in(math.prod(weight.shape[1:]), tuple(weight.shape))
        filters = weight.shape[0]
        self.register_parameter("gain", nn.Parameter(weight.new_ones(filters)) if affine else None)
        self.register_parameter("offset", nn.Parameter(weight.new_zeros(filters)) if affine else None)

    @classmethod
    def from_conv(
        cls: type[WSConvT],
        conv: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        *,
        variant: Variant = "bit",
        preserve: bool = False,
    ) -> WSConvT:
        """A layer like `conv`, parameters, hooks and training flag shared with it, with standardised filters.

        Args:
            conv: the plain convolution of as many dimensions, and no subclass, which has a forward of its own.
            variant: see `standardize_weight`.
            preserve: keep what the filters were: each one's deviation becomes its `gain` and its mean its `offset`, so
                that the layer computes what `conv` does, and training goes on from there.

        Raises:
            ArgumentError: `conv` is of another type, or has a fan-in of 1.
        """
        if type(conv) is not cls.plain:
            raise ArgumentError(
                f"{cls.__name__}.from_conv was given a {type(conv).__name__}. It takes a {cls.plain.__name__} and no "
                f"subclass, whose own forward would be lost. Build the {cls.__name__} by hand instead."
            )
        standardized = cls.__new__(cls)
        standardized.__dict__ = dict(conv.__dict__)
        standardized._parameters = dict(conv._parameters)  # `conv` does not get the new ones
        standardized._standardize_with(variant, None, preserve)
        if preserve:
            standardized._keep_filters()
        return standardized

    def _keep_filters(self) -> None:
        """Sets `gain` and `offset` to each filter's deviation, epsilon included, and mean."""
        assert self.gain is not None
        assert self.offset is not None
        with torch.no_grad():
            filters = self.weight.double().flatten(1)
            variance, mean = torch.var_mean(filters, dim=1, correction=0 if self.variant == "bit" else 1)
            # A dead filter has no deviation: its gain is epsilon's share, and its mean is all of it.
            self.gain.copy_((variance + self.eps).sqrt() if self.variant == "bit" else variance.sqrt() + self.eps)
            self.offset.copy_(mean)
        for parameter in (self.gain, self.offset):
            parameter.requires_grad_(self.weight.requires_grad)

    def standardized_weight(self) -> Tensor:
        """The filters as the convolution uses them, with the shape of `weight`: gain and offset are applied."""
        filters = standardize_weight(self.weight, self.variant, self.eps)
        if self.gain is None or self.offset is None:
            return filters
        per_filter = (-1, *(1,) * (filters.dim() - 1))
        return torch.addcmul(self.offset.view(per_filter), self.gain.view(per_filter), filters)

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of `input` with the standardised filters."""
        return self._conv_forward(input, self.standardized_weight(), self.bias)

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        inherited: str = super().extra_repr()  # type: ignore[no-untyped-call]
        affine = "" if self.gain is None else ", affine=True"
        return f"{inherited}, variant={self.variant!r}, eps={self.eps}{affine}"


class WSConv1d(StandardizedConv, nn.Conv1d):
    """`torch.nn.Conv1d` with standardised filters; see `WSConv2d`."""

    plain = nn.Conv1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: Variant = "bit",
        eps: float | None = None,
        affine: bool = False,
    ) -> None:
        nn.Conv1d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._standardize_with(variant, eps, affine)


class WSConv2d(StandardizedConv, nn.Conv2d):
    """`torch.nn.Conv2d` with standardised filters: `conv(x, (w - mean) / deviation) + bias`, statistics per filter.

    Weight Standardization makes what follows independent of each filter's mean and scale, which a norm right after it
    expects; a convolution that no norm follows should stay plain. Parameters and `state_dict` keys are those of
    `torch.nn.Conv2d`: the raw weight is stored and trained.

    Args:
        in_channels ... dtype: as in `torch.nn.Conv2d`; the fan-in `in_channels / groups * prod(kernel_size)` must be
            at least 2.
        variant: "bit" or "qiao"; see `standardize_weight`.
        eps: the variant's published value where `None`.
        affine: the filters are `gain * standardised + offset`, two Parameters (out,) that start at 1 and 0.

    Raises:
        ArgumentError: unknown variant, negative eps, or a fan-in of 1.

    Source: Qiao et al. 2019 (arXiv 1903.10520); Kolesnikov et al. 2020 (arXiv 1912.11370).

    >>> WSConv2d(3, 8, 3, padding=1)(torch.randn(2, 3, 16, 16)).shape
    torch.Size([2, 8, 16, 16])
    """

    plain = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: Variant = "bit",
        eps: float | None = None,
        affine: bool = False,
    ) -> None:
        nn.Conv2d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._standardize_with(variant, eps, affine)


class WSConv3d(StandardizedConv, nn.Conv3d):
    """`torch.nn.Conv3d` with standardised filters; see `WSConv2d`."""

    plain = nn.Conv3d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: str | int | tuple[int, int, int] = 0,
        dilation: int | tuple[int, int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: Variant = "bit",
        eps: float | None = None,
        affine: bool = False,
    ) -> None:
        nn.Conv3d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._standardize_with(variant, eps, affine)


def _check_arguments(weight: Tensor, variant: str, eps: float | None) -> float:
    eps = _check_variant(variant, eps)
    _check_fan_in(math.prod(weight.shape[1:]), tuple(weight.shape))
    if (weight.is_cpu or weight.is_meta) and not weight.is_contiguous():
        check_size(weight)
    return eps


def _check_variant(variant: str, eps: float | None) -> float:
    if variant not in DEFAULT_EPS:
        raise ArgumentError(unknown_name("variant of Weight Standardization", str(variant), DEFAULT_EPS))
    if eps is None:
        return DEFAULT_EPS[variant]
    if not eps >= 0:
        raise ArgumentError(f"eps={eps!r} was given. It must not be negative. Leave it out for the published value.")
    return eps


def _check_fan_in(fan_in: int, shape: tuple[int, ...]) -> None:
    if fan_in < 2:
        raise ArgumentError(
            f"a weight of shape {shape} has a fan-in of {fan_in}: each filter is its own mean, so all of them would "
            f"become zero. Weight Standardization needs a fan-in of at least 2. Keep this convolution plain."
        )
