"""Any shape, strides, types and settings against the reference, forward and backward."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from batchfree import reference
from batchfree.torch import Activation, group_norm
from tests.closeness import assert_close

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ACTIVATIONS: list[Activation | None] = [None, "relu", "silu", "gelu", "gelu_tanh"]


@dataclass
class Tensors:
    """Draws tensors of one type, laid out in memory in any way that torch has."""

    dtype: torch.dtype
    source: random.Random

    def lay_out(self, shape: tuple[int, ...]) -> Tensor:
        way = self.source.choice(["dense", "channels-last", "permuted", "stepped", "expanded", "overlapping"])
        if way == "channels-last" and len(shape) in (4, 5):
            last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
            return self.normal(shape).to(memory_format=last)
        if way == "permuted":
            order = self.source.sample(range(len(shape)), len(shape))
            return self.normal(tuple(shape[axis] for axis in order)).permute(
                [order.index(i) for i in range(len(shape))]
            )
        if way == "stepped":
            return self.normal(tuple(2 * size for size in shape))[tuple(slice(None, None, 2) for _ in shape)]
        if way == "expanded":  # never all: a group of equal values has a gradient of zero, in which any rounding shows
            is_vector = math.prod(shape[2:]) == 1
            axis = self.source.choice([axis for axis in range(len(shape)) if not (is_vector and axis == 1)])
            return self.normal(tuple(1 if i == axis else size for i, size in enumerate(shape))).expand(shape)
        if way == "overlapping":
            steps = [self.source.randint(1, 3) for _ in shape]
            return self.normal((1 + sum(s * (n - 1) for s, n in zip(steps, shape, strict=True)),)).as_strided(
                shape, steps
            )
        return self.normal(shape)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(self.source.randrange(2**31))
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype or self.dtype)


@settings(max_examples=150, deadline=None)
@given(
    samples=st.integers(1, 3),
    groups=st.integers(1, 4),
    per_group=st.integers(2, 9),
    spatial=st.lists(st.integers(1, 6), max_size=3),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(ACTIVATIONS),
    has_residual=st.booleans(),
    has_weight=st.booleans(),
    has_bias=st.booleans(),
    keeps_type=st.booleans(),
    source=st.randoms(use_true_random=False),
)
def test_any_input_gives_the_references_output_and_gradients(
    samples: int,
    groups: int,
    per_group: int,
    spatial: list[int],
    dtype: torch.dtype,
    activation: Activation | None,
    has_residual: bool,
    has_weight: bool,
    has_bias: bool,
    keeps_type: bool,
    source: random.Random,
) -> None:
    shape = (samples, groups * per_group, *spatial)
    tensors = Tensors(dtype, source)
    parameter_dtype = torch.float32 if dtype.itemsize == 2 and not keeps_type else dtype
    x, upstream = tensors.lay_out(shape), tensors.lay_out(shape)
    residual = tensors.lay_out(shape) if has_residual else None
    weight = tensors.normal((2 * shape[1],), parameter_dtype)[::2] if has_weight else None
    bias = tensors.normal(shape[1:2], parameter_dtype) if has_bias else None
    given_ = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, residual)]
    # eps of 1: few values in a group may lie so near each other that any implementation's rounding shows
    y = group_norm(given_[0], groups, given_[1], given_[2], 1.0, activation=activation, residual=given_[3])  # type: ignore[arg-type]
    arrays = [None if t is None else t.double().numpy() for t in (x, weight, bias, residual, upstream)]
    x_, weight_, bias_, residual_, upstream_ = arrays
    assert x_ is not None
    assert upstream_ is not None
    settings_ = {"activation": activation, "residual": residual_}
    assert_close(y, reference.group_norm(x_, groups, weight_, bias_, 1.0, **settings_), dtype=name_of(dtype))  # type: ignore[arg-type]
    leaves = [t for t in given_ if t is not None]
    wanted = reference.group_norm_backward(upstream_, x_, groups, weight_, bias_, 1.0, **settings_)  # type: ignore[arg-type]
    expected = [w for w, t in zip(wanted, given_, strict=True) if t is not None]
    for got, values in zip(torch.autograd.grad(y, leaves, upstream), expected, strict=True):
        assert values is not None
        assert_close(got, values, dtype=name_of(got.dtype))


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_a_poisoned_sample_leaves_its_neighbours_gradient_bits_alone(
    format: torch.memory_format, poison: float
) -> None:
    tensors = Tensors(torch.float32, random.Random(0))
    x, upstream, weight = tensors.normal((3, 6, 40, 50)), tensors.normal((3, 6, 40, 50)), tensors.normal((6,))

    def call(values: Tensor) -> list[Tensor]:
        leaf = values.contiguous(memory_format=format).requires_grad_()
        y = group_norm(leaf, 2, weight, activation="silu")
        return [y.detach(), *torch.autograd.grad(y, leaf, upstream)]

    clean = call(x.clone())
    x[1, 0, 0, 0] = poison
    for before, after in zip(clean, call(x.clone()), strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        assert torch.equal(before[1, 3:], after[1, 3:])  # the sample's other group
        assert after[1, :3].isnan().any()


@pytest.mark.parametrize("value", [0.0, 3.7, -1e4])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_constant_groups_give_bias_and_finite_gradients(format: torch.memory_format, value: float) -> None:
    tensors = Tensors(torch.float32, random.Random(0))
    x = torch.full((2, 6, 5, 7), value).contiguous(memory_format=format).requires_grad_()
    weight, bias = tensors.normal((6,)).requires_grad_(), tensors.normal((6,)).requires_grad_()
    y = group_norm(x, 3, weight, bias)
    assert np.array_equal(y.detach().numpy(), np.broadcast_to(bias.detach().numpy()[:, None, None], (2, 6, 5, 7)))
    upstream = tensors.normal((2, 6, 5, 7))
    for gradient in torch.autograd.grad(y, [x, weight, bias], upstream):
        assert gradient.isfinite().all()
