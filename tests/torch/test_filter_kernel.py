"""Weight Standardization by the kernels: values and gradients in every layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from batchfree import reference
from batchfree.torch import standardize_weight
from tests.closeness import assert_close
from tests.torch.kernel_nodes import is_by_kernels

pytestmark = pytest.mark.usefixtures("each_kind_of_nodes")


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("variant", ["bit", "qiao"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_standardised_weights_and_their_gradients_match_reference(
    format: torch.memory_format, dtype: torch.dtype, variant: str
) -> None:
    name = str(dtype).removeprefix("torch.")
    weight = (tensor(6, 5, 3, 3, dtype=dtype) * 0.05).to(memory_format=format).requires_grad_()
    upstream = tensor(6, 5, 3, 3, seed=1, dtype=dtype)
    y = standardize_weight(weight, variant)  # type: ignore[arg-type]
    assert is_by_kernels(y)
    assert y.stride() == weight.stride()
    plain = weight.detach().numpy()
    assert_close(y, reference.standardize_weight(plain, variant), dtype=name)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(y, weight, upstream)
    wanted = reference.standardize_weight_backward(upstream.numpy(), plain, variant)  # type: ignore[arg-type]
    assert_close(gradient, wanted, dtype=name)


def test_filters_of_one_shape_are_told_apart_by_layout_variant_and_eps() -> None:
    values = tensor(6, 5, 3, 3) * 0.05
    last, spread = values.contiguous(memory_format=torch.channels_last), torch.empty(6, 5, 3, 6)[..., ::2].copy_(values)
    for eps in (None, 0.25):
        for variant in ("bit", "qiao"):
            wanted = reference.standardize_weight(values.numpy(), variant, eps)
            for weight in (values, last, spread):
                assert_close(standardize_weight(weight, variant, eps), wanted)


def test_no_filters_at_all_are_standardised_to_none() -> None:
    weight = torch.empty(0, 5, 3, 3, requires_grad=True)
    y = standardize_weight(weight)
    assert y.shape == weight.shape
    assert torch.autograd.grad(y.sum(), weight)[0].shape == weight.shape


@pytest.mark.parametrize("variant", ["bit", "qiao"])
def test_standardised_weights_can_be_differentiated_twice(variant: str) -> None:
    weight = tensor(3, 2, 2, dtype=torch.float64).requires_grad_()
    call: Callable[[Tensor], Tensor] = lambda w: standardize_weight(w, variant, 1e-3)  # type: ignore[arg-type]  # noqa: E731
    assert gradcheck(call, [weight])
    assert gradgradcheck(call, [weight])
