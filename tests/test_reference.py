"""The specification against numbers worked by hand and against torch's own operators in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from batchfree import reference
from batchfree.errors import ArgumentError
from tests.closeness import assert_close

ACTIVATIONS: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda z: z,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
}
SHAPES = [(3, 6), (3, 6, 5), (2, 6, 4, 3), (2, 6, 2, 3, 2)]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_group_norm_by_hand() -> None:
    x = np.array([[1.0, 3.0, 10.0, 30.0]])
    # Two groups: (1, 3) has mean 2, deviation 1; (10, 30) has mean 20, deviation 10.
    expected = [[-1 * 2 + 1, 1 * 2 + 1, -1 * 3, 1 * 3]]
    assert_close(reference.group_norm(x, 2, weight=[2, 2, 3, 3], bias=[1, 1, 0, 0], eps=0.0), expected, dtype="float64")


def test_variance_is_biased() -> None:
    assert reference.moments([[1.0, 3.0]], 1).variance.item() == 1.0  # the unbiased one would be 2


def test_eps_is_inside_the_root() -> None:
    assert reference.group_norm([[-1.0, 1.0]], 1, eps=3.0)[0, 1] == 0.5  # 1 / sqrt(1 + 3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_forward_and_backward_match_torch_autograd(
    shape: tuple[int, ...], activation: str | None, num_groups: int
) -> None:
    x, residual, upstream = (random(*shape, seed=seed) for seed in range(3))
    weight, bias = random(6, seed=3), random(6, seed=4)
    leaves = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, weight, bias, residual)]
    y = ACTIVATIONS[activation](F.group_norm(leaves[0], num_groups, leaves[1], leaves[2], 1e-3) + leaves[3])
    gradients = torch.autograd.grad(y, leaves, torch.from_numpy(upstream))

    ours = reference.group_norm(x, num_groups, weight, bias, 1e-3, activation=activation, residual=residual)
    assert_close(ours, y.detach().numpy(), dtype="float64")
    ours_back = reference.group_norm_backward(
        upstream, x, num_groups, weight, bias, 1e-3, activation=activation, residual=residual
    )
    for got, wanted in zip(ours_back, gradients, strict=True):
        assert got is not None
        assert_close(got, wanted.numpy(), dtype="float64")


def test_backward_gives_nothing_for_what_was_not_there() -> None:
    gradients = reference.group_norm_backward(random(2, 4, 3), random(2, 4, 3, seed=1), 2)
    assert gradients.weight is None
    assert gradients.bias is None
    assert gradients.residual is None


def test_merging_parts_gives_the_moments_of_the_whole() -> None:
    x = random(2, 4, 30) + 1e3
    parts = np.split(x, [7, 11], axis=2)
    merged = reference.merge_moments(*(reference.moments(part, 2) for part in parts))
    grouped = x.reshape(2, 2, 60)
    assert merged.size == 60
    assert_close(merged.mean, grouped.mean(axis=2), dtype="float64")
    np.testing.assert_allclose(merged.variance, grouped.var(axis=2), rtol=1e-9)  # the mean is 1e3 deviations


def test_merging_nothing_is_refused() -> None:
    with pytest.raises(ArgumentError):
        reference.merge_moments()


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_batch_layer_and_instance_norm_match_torch(shape: tuple[int, ...]) -> None:
    x, weight, bias = random(*shape), random(6, seed=1), random(6, seed=2)
    tensors = [torch.from_numpy(a) for a in (x, weight, bias)]
    batch = F.batch_norm(tensors[0], None, None, tensors[1], tensors[2], training=True)
    assert_close(reference.batch_norm(x, weight, bias), batch.numpy(), dtype="float64")
    instance = F.instance_norm(tensors[0], weight=tensors[1], bias=tensors[2])
    assert_close(reference.instance_norm(x, weight, bias), instance.numpy(), dtype="float64")
    full_weight, full_bias = (t.reshape(-1, *(1,) * (x.ndim - 2)).expand(x.shape[1:]) for t in tensors[1:])
    layer = F.layer_norm(tensors[0], list(x.shape[1:]), full_weight, full_bias)
    assert_close(reference.layer_norm(x, weight, bias), layer.numpy(), dtype="float64")


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_one_group_is_layer_norm_and_a_group_per_channel_is_instance_norm(shape: tuple[int, ...]) -> None:
    x, weight, bias = random(*shape), random(6, seed=1), random(6, seed=2)
    assert_close(reference.group_norm(x, 1, weight, bias), reference.layer_norm(x, weight, bias), dtype="float64")
    assert_close(reference.group_norm(x, 6, weight, bias), reference.instance_norm(x, weight, bias), dtype="float64")


def test_weight_standardization_by_hand() -> None:
    weight = np.array([[1.0, 3.0], [5.0, 5.0]])  # deviations: biased 1 and 0, unbiased sqrt(2) and 0
    assert_close(
        reference.standardize_weight(weight, "bit", eps=0.21), [[-1 / 1.1, 1 / 1.1], [0.0, 0.0]], dtype="float64"
    )
    root = math.sqrt(2)
    assert_close(
        reference.standardize_weight(weight, "qiao", eps=1.0),
        [[-1 / (root + 1), 1 / (root + 1)], [0.0, 0.0]],
        dtype="float64",
    )


def test_default_eps_follows_the_variant() -> None:
    weight = np.array([[0.0, 1e-5]])
    assert reference.standardize_weight(weight, "bit")[0, 1] == pytest.approx(5e-6 / math.sqrt(25e-12 + 1e-10))
    assert reference.standardize_weight(weight, "qiao")[0, 1] == pytest.approx(5e-6 / (math.sqrt(50e-12) + 1e-5))


@pytest.mark.parametrize("variant", ["bit", "qiao"])
def test_weight_standardization_backward_matches_torch_autograd(variant: reference.Variant) -> None:
    weight, upstream = random(5, 3, 2, 2), random(5, 3, 2, 2, seed=1)
    leaf = torch.from_numpy(weight.copy()).requires_grad_()
    variance, mean = torch.var_mean(leaf, dim=(1, 2, 3), keepdim=True, correction=int(variant == "qiao"))
    divisor = (variance + 0.1).sqrt() if variant == "bit" else variance.sqrt() + 0.1
    (gradient,) = torch.autograd.grad((leaf - mean) / divisor, leaf, torch.from_numpy(upstream))
    ours = reference.standardize_weight_backward(upstream, weight, variant, eps=0.1)
    assert_close(ours, gradient.numpy(), dtype="float64")


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ArgumentError, match="silu"):
        reference.group_norm(random(1, 2, 3), 1, activation="sliu")
    with pytest.raises(ArgumentError, match="fan-in of 1"):
        reference.standardize_weight(random(4, 1, 1))
    with pytest.raises(ArgumentError, match="qiao"):
        reference.standardize_weight(random(2, 3), "qia")  # type: ignore[arg-type]
