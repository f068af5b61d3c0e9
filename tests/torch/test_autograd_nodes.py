"""The kernels' nodes in an autograd graph: either kind keeps torch's contracts, and both give the same bits."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from batchfree.torch import Activation, _compiled_nodes, group_norm, kernel_info, standardize_weight
from tests.torch.kernel_nodes import is_by_kernels

ACTIVATIONS: list[Activation | None] = [None, "relu", "silu", "gelu", "gelu_tanh"]
FORMATS = [torch.contiguous_format, torch.channels_last]
either_kind = pytest.mark.usefixtures("each_kind_of_nodes")


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaves(format: torch.memory_format = torch.contiguous_format, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, weight, bias and residual."""
    maps = [tensor(2, 12, 5, 7, seed=i, dtype=dtype).contiguous(memory_format=format) for i in range(2)]
    return [t.requires_grad_() for t in (maps[0], tensor(12, seed=2), tensor(12, seed=3), maps[1])]


def ours(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    y = group_norm(x, 3, weight, bias, activation="silu", residual=residual)
    assert is_by_kernels(y)
    return y


def torchs(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, 3, weight, bias) + residual)


def gradients(function: Callable[..., Tensor], given: list[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*given), given, upstream)


@pytest.mark.parametrize("given", ["all", "no residual", "no bias", "x alone"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("dtype", "parameter_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
@pytest.mark.parametrize(
    ("shape", "format"),
    [
        ((2, 12, 35), torch.contiguous_format),
        ((2, 12, 5, 7), torch.contiguous_format),
        ((2, 12, 5, 7), torch.channels_last),
        ((2, 12, 3, 2, 5), torch.channels_last_3d),
    ],
)
def test_both_kinds_give_the_same_bits(
    shape: tuple[int, ...],
    format: torch.memory_format,
    dtype: torch.dtype,
    parameter_dtype: torch.dtype,
    activation: Activation | None,
    given: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, residual = (tensor(*shape, seed=i, dtype=dtype).contiguous(memory_format=format) for i in range(2))
    weight, bias = (tensor(12, seed=i, dtype=parameter_dtype) for i in (2, 3))
    absent = {"all": (), "no residual": (3,), "no bias": (2,), "x alone": (1, 2, 3)}[given]
    arguments = [None if i in absent else t.requires_grad_() for i, t in enumerate((x, weight, bias, residual))]
    upstream = tensor(*shape, seed=4, dtype=dtype)
    assert _compiled_nodes.nodes is not None, _compiled_nodes.reason_against
    results = []
    for nodes in (_compiled_nodes.nodes, None):
        monkeypatch.setattr(_compiled_nodes, "nodes", nodes)
        y = group_norm(x, 3, arguments[1], arguments[2], activation=activation, residual=arguments[3])
        assert is_by_kernels(y)
        results.append([y, *torch.autograd.grad(y, [t for t in arguments if t is not None], upstream)])
    assert all(a.equal(b) and a.stride() == b.stride() for a, b in zip(*results, strict=True))


@either_kind
def test_a_batch_of_upstream_gradients_is_differentiated_at_once() -> None:
    given = leaves()
    batch = tensor(5, 2, 12, 5, 7, seed=5)
    found, wanted = (torch.autograd.grad(f(*given), given, batch, is_grads_batched=True) for f in (ours, torchs))
    torch.testing.assert_close(found, wanted)
    weight = tensor(4, 3, 3, 3).requires_grad_()
    batch = tensor(5, 4, 3, 3, 3, seed=5)
    (at_once,) = torch.autograd.grad(standardize_weight(weight), weight, batch, is_grads_batched=True)
    one_by_one = [torch.autograd.grad(standardize_weight(weight), weight, one)[0] for one in batch]
    torch.testing.assert_close(at_once, torch.stack(one_by_one))


@either_kind
@pytest.mark.parametrize("format", FORMATS)
def test_negated_views_count_with_their_sign(format: torch.memory_format) -> None:
    upstream = tensor(2, 12, 5, 7, seed=4).contiguous(memory_format=format)
    given = leaves(format)
    wanted = gradients(ours, given, -upstream)
    torch.testing.assert_close(gradients(ours, given, torch._neg_view(upstream)), wanted)
    x, weight, bias, residual = given
    negated = group_norm(x, 3, torch._neg_view(weight), bias, activation="silu", residual=residual)
    torch.testing.assert_close(negated, ours(x, -weight.detach(), bias, residual))
    filters = tensor(4, 3, 3, 3).contiguous(memory_format=format).requires_grad_()
    upstream = tensor(4, 3, 3, 3, seed=4).contiguous(memory_format=format)
    (found,) = torch.autograd.grad(standardize_weight(filters), filters, torch._neg_view(upstream))
    torch.testing.assert_close(found, torch.autograd.grad(standardize_weight(filters), filters, -upstream)[0])


@either_kind
def test_tensors_without_memory_are_zeros() -> None:
    given = leaves()
    zeros = torch._efficientzerotensor((2, 12, 5, 7))
    wanted = gradients(ours, given, torch.zeros(2, 12, 5, 7))
    torch.testing.assert_close(gradients(ours, given, zeros), wanted)
    _, weight, bias, _ = given
    torch.testing.assert_close(group_norm(zeros, 3, weight, bias), bias[:, None, None].expand(2, 12, 5, 7))


@either_kind
def test_a_functional_wrapper_as_upstream_gradient_is_seen_through() -> None:
    given, upstream = leaves(), tensor(2, 12, 5, 7, seed=4)
    y = ours(*given)

    def backward(upstream: Tensor) -> Tensor:
        return torch.autograd.grad(y, given[0], upstream, retain_graph=True)[0]

    torch.testing.assert_close(torch.func.functionalize(backward)(upstream), backward(upstream))


class _Recorder(TorchDispatchMode):
    """Notes the operators that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(str(function))
        return function(*arguments, **(options or {}))


@either_kind
def test_a_mode_sees_the_operators_of_the_backward_pass() -> None:
    given, upstream = leaves(), tensor(2, 12, 5, 7, seed=4)
    y = ours(*given)
    with _Recorder() as recorder:
        found = torch.autograd.grad(y, given, upstream)
    assert "aten.native_group_norm_backward.default" in recorder.names
    torch.testing.assert_close(found, gradients(ours, given, upstream))


def anew(saved: Tensor) -> Tensor:
    """The same values laid out otherwise: parameters with gaps between them, maps and filters channels-first."""
    if saved.dim() == 1:
        return torch.stack([saved, torch.full_like(saved, torch.nan)], dim=-1)[..., 0]
    return saved.contiguous()


@either_kind
@pytest.mark.parametrize("which", [0, 1, 2, 3, None])
def test_a_hook_may_lay_saved_tensors_out_anew(which: int | None) -> None:
    given, upstream = leaves(torch.channels_last), tensor(2, 12, 5, 7, seed=4)
    wanted = gradients(ours, given, upstream)
    batch = torch.stack([upstream, -upstream])

    def pack(saved: Tensor) -> Tensor:
        return anew(saved) if which is None or saved.is_set_to(given[which]) else saved

    with saved_tensors_hooks(pack, lambda packed: packed):
        found = gradients(ours, given, upstream)
        at_once = torch.autograd.grad(ours(*given), given, batch, is_grads_batched=True)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close([one[0] for one in at_once], list(wanted))


@either_kind
def test_a_hook_may_lay_saved_filters_out_anew() -> None:
    weight = tensor(4, 3, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = tensor(4, 3, 3, 3, seed=4)
    wanted = torch.autograd.grad(standardize_weight(weight), weight, upstream)
    with saved_tensors_hooks(anew, lambda packed: packed):
        found = torch.autograd.grad(standardize_weight(weight), weight, upstream)
    torch.testing.assert_close(found, wanted)


@either_kind
@pytest.mark.parametrize("only", [None, 3])
def test_a_hook_may_give_another_dtype_back(only: int | None) -> None:
    given, upstream = leaves(), tensor(2, 12, 5, 7, seed=4)

    def pack(saved: Tensor) -> Tensor:
        return saved.double() if only is None or saved.is_set_to(given[only]) else saved

    with saved_tensors_hooks(pack, lambda packed: packed):
        found = gradients(ours, given, upstream)
    torch.testing.assert_close(found, gradients(ours, given, upstream))


class _StoppedError(Exception):
    pass


def _stop(_: object) -> Tensor:
    raise _StoppedError("here")


@either_kind
def test_an_exception_in_a_hook_on_saved_tensors_keeps_its_type() -> None:
    with saved_tensors_hooks(_stop, _stop), pytest.raises(_StoppedError, match="here"):
        ours(*leaves())
    with saved_tensors_hooks(lambda t: t, _stop):
        y = ours(*leaves())
    with pytest.raises(_StoppedError, match="here"):
        y.sum().backward()


@either_kind
def test_a_changed_input_and_a_freed_graph_are_refused_as_by_torch() -> None:
    given = leaves()
    y = ours(given[0] * 1, *given[1:])
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()
    x = given[0] * 1
    y = ours(x, *given[1:])
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@either_kind
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch's own, in its derivative formulas
def test_the_tangent_of_an_upstream_gradient_is_never_dropped() -> None:
    upstream, tangent = tensor(2, 12, 5, 7, seed=4), tensor(2, 12, 5, 7, seed=5)
    weight = tensor(4, 3, 3, 3, dtype=torch.float64).requires_grad_()
    for function in (ours, torchs):
        given = leaves()
        y = function(*given)
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward AD"):
            torch.autograd.grad(y, given, forward_ad.make_dual(upstream, tangent))
    upstream, tangent = (tensor(4, 3, 3, 3, seed=i, dtype=torch.float64) for i in (4, 5))
    y = standardize_weight(weight, "qiao")
    with forward_ad.dual_level():
        (found,) = torch.autograd.grad(y, weight, forward_ad.make_dual(upstream, tangent))
        carried = forward_ad.unpack_dual(found).tangent
    # the gradient is linear in the upstream gradient
    torch.testing.assert_close(carried, torch.autograd.grad(standardize_weight(weight, "qiao"), weight, tangent)[0])


@either_kind
def test_compiled_autograd_gives_the_gradients_of_eager() -> None:
    given = leaves()
    wanted = gradients(ours, given, torch.ones(2, 12, 5, 7))
    y = ours(*given).sum()
    with compiled_autograd._enable(torch.compile(backend="eager", dynamic=False)):
        y.backward()
    torch.testing.assert_close([t.grad for t in given], list(wanted))


def test_nodes_are_compiled_here_and_said_to_be_in_use() -> None:
    assert kernel_info().autograd_nodes == "C++"
    assert "autograd nodes in C++" not in kernel_info().not_in_use


def test_a_profiler_sees_both_passes() -> None:
    weight = tensor(4, 3, 3, 3).requires_grad_()
    with torch.profiler.profile() as profile:
        ours(*leaves()).sum().backward()
        standardize_weight(weight).square().sum().backward()
    names = {event.name for event in profile.events()}
    assert {"batchfree::group_norm", "batchfree::standardize_weight"} <= names
    assert any("CppNode<batchfree::GroupNorm>" in name for name in names)


def test_nodes_built_with_another_torch_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "1.0.0+cpu")
    found = runpy.run_path(str(_compiled_nodes.__file__))
    assert found["nodes"] is None
    assert "and this is torch 1.0.0" in found["reason_against"]


class _FindsNothing:
    def find_spec(self, *_: object) -> None:
        return None


def test_an_installation_without_compiled_nodes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "batchfree.torch._autograd_nodes")
    monkeypatch.setattr(sys, "meta_path", [_FindsNothing()])  # an editable install finds it by a finder of its own
    found = runpy.run_path(str(_compiled_nodes.__file__))
    assert found["nodes"] is None
    assert found["reason_against"].startswith("this installation has none")
    for name in ("nodes", "reason_against"):
        monkeypatch.setattr(_compiled_nodes, name, found[name])
    assert kernel_info().autograd_nodes == "Python"
    assert kernel_info().not_in_use["autograd nodes in C++"] == [found["reason_against"]]
