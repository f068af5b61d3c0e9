"""The kernels' nodes in an autograd graph: either kind keeps torch's contracts, and both give the same bits."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from batchfree.torch import Activation, _compiled_nodes, group_norm, kernel_info, standardize_weight
from tests.torch.autograd_nodes import is_by_kernels

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


def spread(values: Tensor) -> Tensor:
    """The same values with gaps between them."""
    return torch.stack([values, torch.full_like(values, torch.nan)], dim=-1)[..., 0]


def gradients(function: Callable[..., Tensor], given: list[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*given), given, upstream)


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", FORMATS)
def test_both_kinds_give_the_same_bits(
    format: torch.memory_format,
    dtype: torch.dtype,
    activation: Activation | None,
    has_residual: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, weight, bias, residual = leaves(format, dtype)
    if dtype is torch.float64:
        weight, bias = (t.detach().double().requires_grad_() for t in (weight, bias))
    given = [x, weight, bias] + [residual] * has_residual
    upstream = tensor(2, 12, 5, 7, seed=4, dtype=dtype)
    assert _compiled_nodes.nodes is not None, _compiled_nodes.reason_against
    results = []
    for nodes in (_compiled_nodes.nodes, None):
        monkeypatch.setattr(_compiled_nodes, "nodes", nodes)
        y = group_norm(x, 3, weight, bias, activation=activation, residual=residual if has_residual else None)
        assert is_by_kernels(y)
        results.append([y, *torch.autograd.grad(y, given, upstream)])
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
def test_an_upstream_gradient_that_is_a_negated_view_counts_with_its_sign(format: torch.memory_format) -> None:
    upstream = tensor(2, 12, 5, 7, seed=4).contiguous(memory_format=format)
    wanted = gradients(ours, leaves(format), -upstream)
    found = gradients(ours, leaves(format), torch._neg_view(upstream))
    assert all(a.equal(b) for a, b in zip(found, wanted, strict=True))
    weight = tensor(4, 3, 3, 3).contiguous(memory_format=format).requires_grad_()
    upstream = tensor(4, 3, 3, 3, seed=4).contiguous(memory_format=format)
    (found_,) = torch.autograd.grad(standardize_weight(weight), weight, torch._neg_view(upstream))
    assert found_.equal(torch.autograd.grad(standardize_weight(weight), weight, -upstream)[0])


@either_kind
def test_hooks_may_lay_saved_tensors_out_anew() -> None:
    given, upstream = leaves(torch.channels_last), tensor(2, 12, 5, 7, seed=4)
    wanted = gradients(ours, given, upstream)
    for moved in (given[0], given[3]):  # one of two, so that they differ
        with saved_tensors_hooks(lambda t, moved=moved: t.contiguous() if t.is_set_to(moved) else t, lambda t: t):
            found = gradients(ours, given, upstream)
        torch.testing.assert_close(found, wanted)
    for moved in given[1:3]:
        with saved_tensors_hooks(lambda t, moved=moved: spread(t) if t.is_set_to(moved) else t, lambda t: t):
            found = gradients(ours, given, upstream)
        torch.testing.assert_close(found, wanted)
    weight = tensor(4, 3, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    with saved_tensors_hooks(lambda t: t.contiguous(), lambda t: t):
        (of_weight,) = torch.autograd.grad(standardize_weight(weight), weight, tensor(4, 3, 3, 3, seed=4))
    torch.testing.assert_close(
        of_weight, torch.autograd.grad(standardize_weight(weight), weight, tensor(4, 3, 3, 3, seed=4))[0]
    )


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


def test_nodes_built_with_another_torch_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_info().autograd_nodes == "C++"
    assert "autograd nodes in C++" not in kernel_info().not_in_use
    monkeypatch.setattr(torch, "__version__", "1.0.0+cpu")
    found = runpy.run_path(str(_compiled_nodes.__file__))
    assert found["nodes"] is None
    assert "and this is torch 1.0.0" in found["reason_against"]
    monkeypatch.setitem(sys.modules, "batchfree.torch._autograd_nodes", None)
    monkeypatch.delattr("batchfree.torch._autograd_nodes")
    found = runpy.run_path(str(_compiled_nodes.__file__))
    assert found["nodes"] is None
    assert found["reason_against"] == "torch was not there when batchfree was built"
    for name in ("nodes", "reason_against"):
        monkeypatch.setattr(_compiled_nodes, name, found[name])
    assert kernel_info().autograd_nodes == "Python"
    assert kernel_info().not_in_use["autograd nodes in C++"] == [found["reason_against"]]
