from __future__ import annotations

import copy
import doctest
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
import torchvision
import torchvision.models.feature_extraction
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from batchfree import reference
from batchfree.convert import convert
from batchfree.errors import ArgumentError, GroupError
from batchfree.torch import GroupNorm, _group_norm, group_norm
from tests.closeness import assert_close

SHAPES = [(3, 12), (2, 12, 7), (2, 12, 5, 3), (2, 12, 3, 2, 4)]
ACTIVATIONS = [None, "relu", "silu", "gelu", "gelu_tanh"]


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_gradients_match_reference(
    shape: tuple[int, ...], activation: _group_norm.Activation | None, with_residual: bool, dtype: torch.dtype
) -> None:
    x, residual, upstream = (tensor(*shape, seed=seed, dtype=dtype) for seed in range(3))
    weight, bias = tensor(12, seed=3, dtype=dtype), tensor(12, seed=4, dtype=dtype)
    leaves = [t.clone().requires_grad_() for t in ((x, weight, bias, residual) if with_residual else (x, weight, bias))]
    y = group_norm(
        leaves[0], 3, leaves[1], leaves[2], activation=activation, residual=leaves[3] if with_residual else None
    )
    gradients = torch.autograd.grad(y, leaves, upstream)

    name = str(dtype).removeprefix("torch.")
    extra = residual.numpy() if with_residual else None
    assert_close(y, reference.group_norm(x, 3, weight, bias, activation=activation, residual=extra), dtype=name)
    wanted = reference.group_norm_backward(upstream, x, 3, weight, bias, activation=activation, residual=extra)
    for got, expected in zip(gradients, wanted, strict=False):
        assert expected is not None
        assert_close(got, expected, dtype=name)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_one_group_is_layer_norm_and_a_group_per_channel_is_instance_norm(shape: tuple[int, ...]) -> None:
    x, weight, bias = tensor(*shape), tensor(12, seed=1), tensor(12, seed=2)
    assert_close(group_norm(x, 1, weight, bias), reference.layer_norm(x, weight, bias))
    assert_close(group_norm(x, 12, weight, bias), reference.instance_norm(x, weight, bias))


def test_variance_is_biased() -> None:
    # One group of 1 and 3: deviation 1 by the biased variance, 1.41 by the unbiased one of the blog's listing.
    y = group_norm(torch.tensor([[1.0, 3.0]], dtype=torch.float64), 1, eps=1e-15)
    assert_close(y, [[-1.0, 1.0]], dtype="float64")


def test_forward_matches_reference_when_mean_dwarfs_deviation() -> None:
    x = tensor(2, 12, 5, 3) + 100
    assert_close(group_norm(x, 3), reference.group_norm(x, 3))


def test_a_constant_group_gives_bias_and_finite_gradients() -> None:
    x = torch.zeros(2, 4, 3, 3, requires_grad=True)  # as after a ReLU that cut everything
    bias = tensor(4)
    y = group_norm(x, 2, tensor(4, seed=1), bias)
    assert_close(y, bias.reshape(1, 4, 1, 1).expand(2, 4, 3, 3).double())
    (gradient,) = torch.autograd.grad(y, x, tensor(2, 4, 3, 3, seed=2))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_sample_leaves_its_neighbours_bits_alone(poison: float) -> None:
    x = tensor(3, 4, 5, 5)
    clean = group_norm(x, 2)
    x[1, 0, 0, 0] = poison
    poisoned = group_norm(x, 2)
    assert torch.equal(clean[[0, 2]], poisoned[[0, 2]])
    assert poisoned[1].isnan().any()


def test_no_sample_sees_another() -> None:
    x = tensor(4, 12, 5, 3)
    alone = torch.cat([group_norm(sample[None], 3) for sample in x])
    assert torch.equal(alone, group_norm(x, 3))


def test_an_empty_batch_gives_an_empty_batch() -> None:
    assert group_norm(torch.empty(0, 4, 3, 3), 2, torch.ones(4), torch.zeros(4)).shape == (0, 4, 3, 3)


def test_strided_and_channels_last_inputs_match_reference_and_keep_their_memory_format() -> None:
    x = tensor(2, 12, 6, 6).to(memory_format=torch.channels_last)
    y = group_norm(x, 3, tensor(12, seed=1), tensor(12, seed=2), activation="silu")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, reference.group_norm(x, 3, tensor(12, seed=1), tensor(12, seed=2), activation="silu"))
    every_second = tensor(2, 24, 6, 6)[:, ::2, :, ::2]
    assert_close(group_norm(every_second, 3), reference.group_norm(every_second, 3))


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(0, 3),
    num_groups=st.integers(1, 4),
    per_group=st.integers(1, 5),
    spatial=st.lists(st.integers(1, 5), max_size=3),
    seed=st.integers(0, 2**31),
)
def test_any_shape_matches_reference_or_is_refused(
    batch: int, num_groups: int, per_group: int, spatial: list[int], seed: int
) -> None:
    x = tensor(batch, num_groups * per_group, *spatial, seed=seed, dtype=torch.float64)
    if per_group * int(np.prod(spatial)) == 1:
        with pytest.raises(GroupError):
            group_norm(x, num_groups)
    else:
        # eps of 1: two near-equal values in a group would make any implementation's rounding visible
        y = group_norm(x, num_groups, eps=1.0)
        assert y.shape == x.shape
        if batch:
            assert_close(y, reference.group_norm(x, num_groups, eps=1.0), dtype="float64")


def test_layer_matches_torchs_and_takes_its_weights() -> None:
    theirs = nn.GroupNorm(3, 12, eps=1e-3)
    with torch.no_grad():
        theirs.weight.copy_(tensor(12, seed=1))
        theirs.bias.copy_(tensor(12, seed=2))
    ours = GroupNorm(3, 12, eps=1e-3)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = tensor(2, 12, 5, 5)
    assert_close(ours(x), theirs(x).detach().double().numpy())
    assert isinstance(ours, nn.GroupNorm)
    assert [*ours.state_dict()] == ["weight", "bias"]


def test_layer_has_torchs_defaults() -> None:
    ours, theirs = GroupNorm(2, 8), nn.GroupNorm(2, 8)
    assert (ours.eps, ours.affine, ours.weight.dtype) == (theirs.eps, theirs.affine, theirs.weight.dtype)
    assert_close(ours.weight, np.ones(8))
    assert_close(ours.bias, np.zeros(8))
    assert [*GroupNorm(2, 8, affine=False).parameters()] == []
    without_bias = GroupNorm(2, 8, bias=False, dtype=torch.float64)
    assert [name for name, _ in without_bias.named_parameters()] == ["weight"]
    assert without_bias.weight.dtype == torch.float64
    without_bias.reset_parameters()


def test_layer_adds_residual_before_the_activation() -> None:
    norm = GroupNorm(3, 12, activation="relu")
    x, residual = tensor(2, 12, 5, 5), tensor(2, 12, 5, 5, seed=1)
    expected = reference.group_norm(x, 3, activation="relu", residual=residual)
    assert_close(norm(x, residual=residual), expected)
    assert "activation='relu'" in repr(norm)


def test_layer_survives_pickle_and_deepcopy() -> None:
    norm = GroupNorm(3, 12, activation="gelu")
    x = tensor(2, 12, 5, 5)
    for copied in (pickle.loads(pickle.dumps(norm)), copy.deepcopy(norm)):
        assert torch.equal(copied(x), norm(x))


def test_layer_traces_as_torchs_does() -> None:
    network = nn.Sequential(nn.Conv2d(3, 12, 3), GroupNorm(3, 12, activation="relu"))
    x = tensor(2, 3, 8, 8)
    assert torch.equal(torch.fx.symbolic_trace(network)(x), network(x))
    # An exported graph holds torch's own operator, which rounds differently.
    wanted = network(x).detach().double().numpy()
    assert_close(torch.export.export(network, (x,)).module()(x), wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out, and still in use
        assert_close(torch.jit.trace(network, x)(x), wanted)


def test_a_converted_network_gives_its_features() -> None:
    network = convert(torchvision.models.resnet18(weights=None), "gn")
    features = torchvision.models.feature_extraction.create_feature_extractor(network, ["layer2"])
    assert features(tensor(1, 3, 64, 64))["layer2"].shape == (1, 128, 8, 8)


def test_groups_that_do_not_divide_are_refused_with_a_mend_that_works() -> None:
    with pytest.raises(GroupError) as caught:
        GroupNorm(32, 48)
    mend = re.search(r"num_groups=(\d+)", str(caught.value))
    assert mend is not None
    GroupNorm(int(mend[1]), 48)
    with pytest.raises(GroupError):
        group_norm(tensor(2, 48, 2, 2), 32)


def test_one_value_per_group_is_refused_whatever_the_batch() -> None:
    for batch in (1, 2):
        with pytest.raises(GroupError, match="one value per sample"):
            group_norm(tensor(batch, 8, 1, 1), 8)
    # torch refuses this one although each group has 2 values
    assert_close(group_norm(torch.tensor([[1.0, 3.0]]), 1), reference.group_norm([[1.0, 3.0]], 1))


@pytest.mark.parametrize(
    "call",
    [
        lambda: group_norm(tensor(8), 2),
        lambda: group_norm(torch.ones(2, 8, dtype=torch.int64), 2),
        lambda: group_norm(tensor(2, 8), 2, eps=0.0),
        lambda: group_norm(tensor(2, 8), 2, eps=float("nan")),
        lambda: group_norm(tensor(2, 8), 2, weight=torch.ones(4)),
        lambda: group_norm(tensor(2, 8), 2, bias=torch.ones(8, 1)),
        lambda: group_norm(tensor(2, 8), 2, residual=tensor(1, 8)),
        lambda: group_norm(tensor(2, 8), 2, activation="swish"),  # type: ignore[arg-type]
        lambda: GroupNorm(2, 8, activation="Relu"),  # type: ignore[arg-type]
        lambda: GroupNorm(2, 8, eps=-1.0),
        lambda: GroupNorm(2, 8)(tensor(2, 4, 3)),
    ],
)
def test_bad_arguments_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArgumentError):
        call()


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(_group_norm).failed == 0


def test_a_right_call_does_not_excuse_one_that_differs() -> None:
    x, weight, bias = torch.randn(2, 8, 3, 3), torch.ones(8), torch.zeros(8)
    group_norm(x, 4, weight, bias)
    for wrong in (
        lambda: group_norm(x, 4, weight.double(), bias),
        lambda: group_norm(x, 4, weight, bias[:4]),
        lambda: group_norm(x, 4, weight, bias, eps=0.0),
        lambda: group_norm(x, 4, weight, bias, activation="Relu"),  # type: ignore[arg-type]
        lambda: group_norm(x, 4, weight, bias, residual=x[:1]),
    ):
        with pytest.raises(ArgumentError):
            wrong()
    with pytest.raises(GroupError):
        group_norm(x, 3, weight, bias)
