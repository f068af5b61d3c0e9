from __future__ import annotations

import copy
import doctest
from typing import Any

import pytest
import torch
from torch import nn

from batchfree import reference
from batchfree.errors import ArgumentError
from batchfree.torch import WSConv1d, WSConv2d, WSConv3d, _weight_standardization, standardize_weight
from tests.closeness import assert_close

DIMENSIONS = [(WSConv1d, nn.Conv1d), (WSConv2d, nn.Conv2d), (WSConv3d, nn.Conv3d)]
VARIANTS: list[_weight_standardization.Variant] = ["bit", "qiao"]


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(5, 3, 3), (5, 3, 3, 2), (5, 3, 2, 2, 2), (4, 1, 3, 3)])
def test_values_and_gradient_match_reference(shape: tuple[int, ...], variant: _weight_standardization.Variant) -> None:
    weight = (tensor(*shape) + 3).requires_grad_()
    upstream = tensor(*shape, seed=1)
    standardized = standardize_weight(weight, variant)
    (gradient,) = torch.autograd.grad(standardized, weight, upstream)
    array = weight.detach().numpy()
    assert_close(standardized, reference.standardize_weight(array, variant))
    assert_close(gradient, reference.standardize_weight_backward(upstream, array, variant))


def test_eps_reaches_the_formula() -> None:
    weight = tensor(5, 3, 3)
    for variant in VARIANTS:
        assert_close(standardize_weight(weight, variant, eps=0.5), reference.standardize_weight(weight, variant, 0.5))


@pytest.mark.parametrize(("ws_class", "plain_class"), DIMENSIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_convolution_uses_the_standardised_filters_and_loads_plain_weights(
    ws_class: Any, plain_class: Any, variant: _weight_standardization.Variant
) -> None:
    arguments = {"stride": 2, "padding": 1, "dilation": 1, "groups": 2, "padding_mode": "replicate"}
    plain = plain_class(4, 6, 3, **arguments)
    conv = ws_class(4, 6, 3, **arguments, variant=variant)
    conv.load_state_dict(plain.state_dict())
    assert [*conv.state_dict()] == [*plain.state_dict()]

    expected = copy.deepcopy(plain).double()
    with torch.no_grad():
        expected.weight.copy_(torch.from_numpy(reference.standardize_weight(plain.weight.detach(), variant)))
    x = tensor(2, 4, *(5,) * (plain.weight.dim() - 2))
    assert_close(conv(x), expected(x.double()).detach().numpy())
    assert f"variant='{variant}'" in repr(conv)


@pytest.mark.parametrize(("ws_class", "plain_class"), DIMENSIONS)
def test_from_conv_shares_parameters_and_hooks(ws_class: Any, plain_class: Any) -> None:
    plain = plain_class(4, 6, 3, padding=1, groups=2)
    plain.register_forward_hook(lambda *_: None)
    conv = ws_class.from_conv(plain, variant="qiao")
    assert conv.weight is plain.weight
    assert conv.variant == "qiao"
    assert len(conv._forward_hooks) == 1
    expected = ws_class(4, 6, 3, padding=1, groups=2, variant="qiao")
    expected.load_state_dict(plain.state_dict())
    x = tensor(2, 4, *(5,) * (plain.weight.dim() - 2))
    assert torch.equal(conv(x), expected(x))
    with pytest.raises(ArgumentError, match="no subclass"):
        ws_class.from_conv(conv)


def test_gradient_flows_to_the_raw_weight() -> None:
    conv = WSConv2d(3, 4, 3, bias=False)
    y = conv(tensor(2, 3, 8, 8))
    y.backward(tensor(*y.shape, seed=1))
    gradient = conv.weight.grad
    assert gradient is not None
    # The function is blind to each filter's mean, so the gradient has none; and it is not zero.
    assert gradient.sum(dim=(1, 2, 3)).abs().max() < 1e-4 * gradient.abs().max()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: WSConv2d(1, 4, 1),
        lambda: WSConv1d(4, 4, 1, groups=4),
        lambda: WSConv3d(3, 4, 1, variant="bits"),  # type: ignore[arg-type]
        lambda: WSConv2d(3, 4, 3, eps=-1.0),
        lambda: standardize_weight(torch.ones(4, 1, 1, 1)),
    ],
)
def test_bad_arguments_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArgumentError):
        call()


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(_weight_standardization).failed == 0
