"""Convolutions whose filters are standardised before use, and folding them back into plain ones."""

from __future__ import annotations

import copy
import math
from typing import Literal, TypeAlias, TypeVar, overload

import torch
from torch import Tensor, nn

from batchfree.errors import ArgumentError, unknown_name
from batchfree.torch import _formula, _kernel, _operators
from batchfree.torch._group_norm import check_size

__all__ = ["Variant", "WSConv1d", "WSConv2d", "WSConv3d", "fold", "standardize_weight"]

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
    eps = _check_variant(variant, eps)
    _check_fan_in(math.prod(weight.shape[1:]), tuple(weight.shape))
    if weight.is_cpu and not weight.is_contiguous():
        check_size(weight)
    if _kernel.is_plain_eager() and _kernel.serves(weight):
        return _kernel.standardize_weight(weight, variant, eps)
    if _operators.is_wanted() and _operators.serves(weight):
        return _operators.standardize_weight(weight, variant, eps)
    return _formula.standardize_weight(weight, variant, eps)


WSConvT = TypeVar("WSConvT", bound="_WSConv")


class _WSConv(nn.modules.conv._ConvNd):
    """What the three convolutions share: the variant, its eps, and the plain layer that computes the same."""

    plain: type[nn.Conv1d | nn.Conv2d | nn.Conv3d]
    variant: Variant
    eps: float

    def _standardize_with(self, variant: Variant, eps: float | None) -> None:
        self.eps = _check_variant(variant, eps)
        self.variant = variant
        _check_fan_in(math.prod(self.weight.shape[1:]), tuple(self.weight.shape))

    @classmethod
    def from_conv(cls: type[WSConvT], conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, *, variant: Variant = "bit") -> WSConvT:
        """A layer like `conv`, parameters, hooks and training flag shared with it, with standardised filters.

        Args:
            conv: the plain convolution of as many dimensions, and no subclass, which has a forward of its own.
            variant: see `standardize_weight`.

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
        standardized._standardize_with(variant, None)
        return standardized

    def standardized_weight(self) -> Tensor:
        """The filters as the convolution uses them, with the shape of `weight`."""
        return standardize_weight(self.weight, self.variant, self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of `input` with the standardised filters."""
        return self._conv_forward(input, self.standardized_weight(), self.bias)

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        inherited: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{inherited}, variant={self.variant!r}, eps={self.eps}"


class WSConv1d(_WSConv, nn.Conv1d):
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
        self._standardize_with(variant, eps)


class WSConv2d(_WSConv, nn.Conv2d):
    """`torch.nn.Conv2d` with standardised filters: `conv(x, (w - mean) / deviation) + bias`, statistics per filter.

    Weight Standardization makes what follows independent of each filter's mean and scale, which a norm right after it
    expects; a convolution that no norm follows should stay plain. Parameters and `state_dict` keys are those of
    `torch.nn.Conv2d`: the raw weight is stored and trained.

    Args:
        in_channels ... dtype: as in `torch.nn.Conv2d`; the fan-in `in_channels / groups * prod(kernel_size)` must be
            at least 2.
        variant: "bit" or "qiao"; see `standardize_weight`.
        eps: the variant's published value where `None`.

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
        self._standardize_with(variant, eps)


class WSConv3d(_WSConv, nn.Conv3d):
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
        self._standardize_with(variant, eps)


ModuleT = TypeVar("ModuleT", bound=nn.Module)


@overload
def fold(module: WSConv1d) -> nn.Conv1d: ...
@overload
def fold(module: WSConv2d) -> nn.Conv2d: ...
@overload
def fold(module: WSConv3d) -> nn.Conv3d: ...
@overload
def fold(module: ModuleT) -> ModuleT: ...
def fold(module: nn.Module) -> nn.Module:
    """A copy of `module` for inference, in which every `WSConv*d` is a plain convolution of the same function.

    Args:
        module: a `WSConv*d`, or a network that holds some; left as it is.

    Returns:
        A deep copy; a plain convolution where `module` itself is a `WSConv*d`. Tied convolutions stay tied.

    >>> network = nn.Sequential(WSConv2d(3, 8, 3), nn.ReLU())
    >>> type(fold(network)[0]).__name__
    'Conv2d'
    """
    folded = copy.deepcopy(module)
    if isinstance(folded, _WSConv):
        return _plain_convolution(folded)
    plain: dict[_WSConv, nn.Module] = {}
    for parent in list(folded.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips a second name of the same module
            if isinstance(child, _WSConv):
                setattr(parent, name, plain.setdefault(child, _plain_convolution(child)))
    return folded


def _plain_convolution(conv: _WSConv) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    # Shares the attributes instead of building a layer anew: hooks, padding mode, training flag and dtype come along.
    plain = conv.plain.__new__(conv.plain)
    plain.__dict__ = {key: value for key, value in conv.__dict__.items() if key not in ("variant", "eps")}
    plain._parameters = dict(conv._parameters)
    with torch.no_grad():
        weight = conv.standardized_weight()
    plain.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    return plain


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
