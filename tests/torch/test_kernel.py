"""Group Norm by the kernels: values, gradients, memory, and every way of calling the layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from batchfree import _core, reference
from batchfree.errors import ArgumentError
from batchfree.torch import Activation, GroupNorm, _formula, group_norm, moments, standardize_weight
from tests.closeness import assert_close
from tests.torch.kernel_nodes import is_by_kernels

pytestmark = pytest.mark.usefixtures("each_kind_of_nodes")
ACTIVATIONS: list[Activation | None] = [None, "relu", "silu", "gelu", "gelu_tanh"]


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layer(activation: Activation | None = "silu") -> GroupNorm:
    norm = GroupNorm(3, 12, activation=activation)
    with torch.no_grad():
        assert norm.weight is not None
        norm.weight.copy_(tensor(12, seed=8))
        norm.bias.copy_(tensor(12, seed=9))
    return norm


@pytest.mark.parametrize("parameter_dtype", ["same", torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_half_types_match_reference(
    dtype: torch.dtype, parameter_dtype: torch.dtype | str, format: torch.memory_format
) -> None:
    name = str(dtype).removeprefix("torch.")
    x, dy, residual = (tensor(2, 12, 9, 7, seed=i, dtype=dtype).contiguous(memory_format=format) for i in range(3))
    stored = dtype if parameter_dtype == "same" else torch.float32
    weight, bias = tensor(12, seed=3, dtype=stored), tensor(12, seed=4, dtype=stored)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias, residual)]
    y = group_norm(leaves[0], 3, leaves[1], leaves[2], activation="gelu", residual=leaves[3])
    assert is_by_kernels(y)
    args = [t.double().numpy() for t in (x, weight, bias, residual)]
    assert_close(y, reference.group_norm(args[0], 3, args[1], args[2], activation="gelu", residual=args[3]), dtype=name)
    wanted = reference.group_norm_backward(
        dy.double().numpy(), args[0], 3, args[1], args[2], activation="gelu", residual=args[3]
    )
    for got, expected in zip(torch.autograd.grad(y, leaves, dy), wanted, strict=True):
        assert expected is not None
        assert_close(got, expected, dtype=str(got.dtype).removeprefix("torch."))
        assert got.dim() == 1 or got.is_contiguous(memory_format=format)


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("affine", [(), ("weight",), ("bias",)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_without_some_arguments_match_finite_differences(
    activation: Activation | None, affine: tuple[str, ...], has_residual: bool
) -> None:
    names = ["input", *affine, *(["residual"] if has_residual else [])]
    shapes = {"input": (2, 4, 2), "weight": (4,), "bias": (4,), "residual": (2, 4, 2)}
    leaves = [tensor(*shapes[n], seed=i, dtype=torch.float64).requires_grad_() for i, n in enumerate(names)]

    def call(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        skip = given.get("residual")
        return group_norm(
            given["input"], 2, given.get("weight"), given.get("bias"), activation=activation, residual=skip
        )

    assert is_by_kernels(call(*leaves))
    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_first_and_second_derivatives_match_finite_differences(activation: Activation | None) -> None:
    arguments = [tensor(2, 4, 3, 2, seed=0, dtype=torch.float64), tensor(4, seed=1, dtype=torch.float64)]
    arguments += [tensor(4, seed=2, dtype=torch.float64), tensor(2, 4, 3, 2, seed=3, dtype=torch.float64)]

    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return group_norm(x, 2, weight, bias, activation=activation, residual=residual)

    leaves = [a.requires_grad_() for a in arguments]
    assert is_by_kernels(call(*leaves))
    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves)


def test_a_strided_inputs_second_derivative_reaches_it() -> None:
    wide = tensor(2, 8, 3, 2, dtype=torch.float64).requires_grad_()
    assert gradgradcheck(lambda x: group_norm(x[:, ::2], 2, activation="silu"), [wide])


@pytest.mark.parametrize("wanted", range(4))
def test_only_wanted_gradients_are_computed(wanted: int) -> None:
    arguments = [tensor(2, 4, 3, 2), tensor(4, seed=1), tensor(4, seed=2), tensor(2, 4, 3, 2, seed=3)]
    arguments[wanted].requires_grad_()
    x, weight, bias, residual = arguments
    upstream = tensor(2, 4, 3, 2, seed=4)
    group_norm(x, 2, weight, bias, activation="relu", residual=residual).backward(upstream)
    expected = reference.group_norm_backward(
        upstream.numpy(),
        x.detach().numpy(),
        2,
        weight.detach().numpy(),
        bias.detach().numpy(),
        activation="relu",
        residual=residual.detach().numpy(),
    )
    for i, (argument, values) in enumerate(zip(arguments, expected, strict=True)):
        if i != wanted:
            assert argument.grad is None
        else:
            assert values is not None
            assert_close(argument.grad, values)


@pytest.mark.parametrize("spread", ["expanded", "transposed", "channels_last"])
def test_any_layout_of_the_upstream_gradient_is_right(spread: str) -> None:
    x = tensor(2, 4, 6, 6).requires_grad_()
    upstream = {
        "expanded": tensor(2, 4, 1, 1, seed=1).expand(2, 4, 6, 6),
        "transposed": tensor(2, 4, 6, 6, seed=1).transpose(2, 3),
        "channels_last": tensor(2, 4, 6, 6, seed=1).to(memory_format=torch.channels_last),
    }[spread]
    (gradient,) = torch.autograd.grad(group_norm(x, 2, activation="relu"), x, upstream)
    assert_close(
        gradient, reference.group_norm_backward(upstream.numpy(), x.detach().numpy(), 2, activation="relu").input
    )


def test_overlapping_and_strided_inputs_are_right() -> None:
    overlapping = tensor(2, 4, 1, 6).expand(2, 4, 5, 6)
    windows = torch.arange(40.0).sin().as_strided((2, 4, 6), (8, 3, 1))
    volume = tensor(2, 4, 3, 5, 6).to(memory_format=torch.channels_last_3d)
    for x in (overlapping, windows, volume, volume[:, :, 1:], tensor(6, 4, 2).permute(2, 1, 0)):
        assert_close(group_norm(x, 2), reference.group_norm(x.numpy(), 2))
    assert group_norm(volume, 2).is_contiguous(memory_format=torch.channels_last_3d)
    cropped = tensor(2, 4, 6, 6).to(memory_format=torch.channels_last)[:, :, 1:]
    assert group_norm(cropped, 2).is_contiguous(memory_format=torch.channels_last)


def test_calls_of_one_shape_in_different_layouts_do_not_take_each_other_for_their_own() -> None:
    values, dy, weight = tensor(2, 12, 6, 5), tensor(2, 12, 6, 5, seed=1), tensor(12, seed=2)
    wanted = reference.group_norm(values, 3, weight.numpy())
    wanted_gradient = reference.group_norm_backward(dy.numpy(), values.numpy(), 3, weight.numpy()).input
    last = values.contiguous(memory_format=torch.channels_last)
    spread = torch.empty(2, 12, 6, 10)[..., ::2].copy_(values)
    for x in (values, last, spread, values.transpose(2, 3).contiguous().transpose(2, 3), values):
        leaf = x.detach().requires_grad_()
        y = group_norm(leaf, 3, weight)
        assert is_by_kernels(y)
        assert_close(y, wanted)
        (gradient,) = torch.autograd.grad(y, leaf, dy)
        assert_close(gradient, wanted_gradient)


def test_fused_activation_keeps_one_activation_sized_tensor() -> None:
    kept: list[Tensor] = []

    def keep(saved: Tensor) -> Tensor:
        kept.append(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        x = tensor(2, 12, 16, 16).requires_grad_()
        layer("silu")(x)
    assert sum(t.numel() >= x.numel() for t in kept) == 1


def kept_bytes(network: nn.Module, x: Tensor) -> int:
    """Of the tensors that backward needs, without the parameters; each memory counted once."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        y = network(x)
    assert y.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_a_chain_with_fused_activations_keeps_two_thirds_of_the_bytes(activation: Activation) -> None:
    after = {"silu": nn.SiLU(), "gelu": nn.GELU()}[activation]
    fused = [[nn.Conv2d(32, 32, 1), GroupNorm(8, 32, activation=activation)] for _ in range(4)]
    eager = [[nn.Conv2d(32, 32, 1), nn.GroupNorm(8, 32), after] for _ in range(4)]
    ours, theirs = (nn.Sequential(*(part for block in blocks for part in block)) for blocks in (fused, eager))
    x = tensor(2, 32, 32, 32)
    assert kept_bytes(ours, x) <= 0.67 * kept_bytes(theirs, x)


def test_sizes_that_no_memory_holds_are_refused_before_any_work() -> None:
    x = torch.ones(1).expand(2**31, 32, 2**20)  # of more than 2**63 elements torch itself makes no tensor
    calls: list[Callable[[], object]] = [
        lambda: group_norm(x, 4),
        lambda: moments(x, 4),
        lambda: standardize_weight(x),
    ]
    for call in calls:
        with pytest.raises(ArgumentError, match=f"{2**31}, 32"):
            call()
    assert group_norm(x[:2, :, :8], 4).shape == (2, 32, 8)  # what the message proposes


@pytest.mark.long
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_more_elements_than_32_bits_count_are_right(format: torch.memory_format) -> None:
    # 4 GiB of input and of output. Ones and minus ones: mean 0, variance 1.
    x = torch.empty(1, 64, 2**13 + 2, 2**12, dtype=torch.bfloat16, memory_format=format)
    x.fill_(1)[:, :, ::2] = -1
    weight, bias = torch.arange(64) / 64 + 1, torch.arange(64) / 32
    y = group_norm(x, 2, weight, bias, activation="relu")
    assert y.numel() > 2**31
    expected = torch.stack([bias - weight, bias + weight], dim=1).relu().bfloat16()[None, :, :, None]
    for rows in range(0, x.shape[2], 512):
        assert torch.equal(y[:, :, rows : rows + 2].amax(3, keepdim=True), expected)
        assert torch.equal(y[:, :, rows : rows + 2].amin(3, keepdim=True), expected)
    y, found = torch.ops.batchfree.group_norm(x, 2, None, None, 1e-5, None, None)
    wanted = [True, False, False, False]
    del y
    # The gradient of a group's own normalised values is zero but for eps.
    dx = torch.ops.batchfree.group_norm_backward(x, x, 2, None, None, 1e-5, None, None, found, wanted)[0]
    for place in (0, -1):
        assert dx[0, place, place, place].abs() < 2e-5


def test_autocast_changes_nothing_as_in_torch() -> None:
    norm, x = layer(), tensor(2, 12, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            theirs = _formula.group_norm(x.to(dtype), 3, norm.weight, norm.bias, 1e-5, "silu", None)
            ours = norm(x.to(dtype))
            assert ours.dtype is theirs.dtype
            assert_close(ours, theirs.detach().double().numpy(), dtype=str(dtype).removeprefix("torch."))


def test_checkpointing_and_training_survive_a_changed_input() -> None:
    norm, x = layer(), tensor(2, 12, 5, 5).requires_grad_()
    upstream = tensor(2, 12, 5, 5, seed=1)
    (direct,) = torch.autograd.grad(norm(x), x, upstream)
    again = torch.utils.checkpoint.checkpoint(norm, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again, x, upstream)[0], direct)
    inner = x * 1
    y = norm(inner)
    inner.add_(1)  # what backward needs has changed: torch must notice
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(upstream)


def test_one_openmp_runtime_is_in_the_process() -> None:
    layer()(tensor(4, 12, 64, 64))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists its libraries there")
    libraries = {line.split()[-1] for line in maps.read_text().splitlines() if "omp" in line.rpartition("/")[2]}
    assert [name for name in libraries if "libgomp" in name or "libomp" in name or "libiomp" in name] == [
        _core.threading_runtime()
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight": torch.ones(8, device="meta")},
        {"weight": torch.ones(8), "bias": torch.zeros(8, dtype=torch.float64)},
        {"weight": torch.ones(8, dtype=torch.float64)},
        {"bias": torch.ones(8, dtype=torch.bfloat16)},
        {"residual": torch.ones(2, 8, 3, device="meta")},
    ],
)
def test_mixed_devices_and_types_are_refused(arguments: dict[str, Tensor]) -> None:
    with pytest.raises(ArgumentError):
        group_norm(tensor(2, 8, 3), 2, **arguments)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, at the import
def test_torchs_own_samples_pass() -> None:
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

    ours: Any = group_norm  # the samples are typed as anything
    theirs: Any = nn.functional.group_norm
    (operator,) = (info for info in op_db if info.name == "nn.functional.group_norm")
    for sample in operator.sample_inputs("cpu", torch.float32, requires_grad=True):
        parameters: dict[str, Any] = {"weight": None, "bias": None, **sample.kwargs}
        if parameters.get("eps", 1e-5) <= 0:  # torch samples one negative eps; we refuse it
            with pytest.raises(ArgumentError):
                ours(sample.input, *sample.args, **parameters)
            continue
        with torch.no_grad():
            expected = theirs(
                sample.input.double(),
                sample.args[0],
                **{name: value.double() if isinstance(value, Tensor) else value for name, value in parameters.items()},
            )
        assert_close(ours(sample.input, *sample.args, **parameters), expected.numpy())
    (module,) = (info for info in module_db if info.module_cls is nn.GroupNorm)
    samples = module.module_inputs_func(module, "cpu", torch.float32, requires_grad=True, training=True)
    for sample in samples:
        settings_ = sample.constructor_input
        layer_ = GroupNorm(*settings_.args, **settings_.kwargs)
        plain = nn.GroupNorm(*settings_.args, **settings_.kwargs)
        plain.load_state_dict(layer_.state_dict())
        x = sample.forward_input.args[0]
        assert_close(layer_(x), plain.double()(x.double()).detach().numpy())
