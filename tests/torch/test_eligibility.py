"""When the kernels are used, and that what they do not serve has the same results."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from batchfree import reference
from batchfree.torch import GroupNorm, _eligibility, group_norm
from tests.closeness import assert_close
from tests.torch.kernel_nodes import is_by_kernels


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layer() -> GroupNorm:
    norm = GroupNorm(3, 12, activation="silu")
    with torch.no_grad():
        assert norm.weight is not None
        norm.weight.copy_(tensor(12, seed=8))
        norm.bias.copy_(tensor(12, seed=9))
    return norm


def test_kernels_serve_plain_cpu_tensors_and_say_why_not_otherwise() -> None:
    x = tensor(2, 12, 5, 5)
    assert is_by_kernels(layer()(x))
    assert _eligibility.reasons_against(x) == []
    for other in (x.to("meta"), x[:0], x.to(torch.complex64), x.to_sparse()):
        assert not _eligibility.serves(other)
        assert _eligibility.reasons_against(other)
    with forward_ad.dual_level():
        assert not _eligibility.is_plain_eager()
        assert len(_eligibility.reasons_against(x.to("meta"))) == 2
    assert _eligibility.is_plain_eager()


class Watched(nn.Parameter):
    """Notes the operators that are called with it, as quantised and sharded parameters do."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(getattr(function, "__name__", ""))
        return super().__torch_function__(function, types, args, kwargs or {})


def test_subclasses_of_parameters_see_torchs_own_operator() -> None:
    x, weight = tensor(2, 12, 5), tensor(12, seed=1)
    y = group_norm(x, 3, Watched(weight))
    assert "group_norm" in Watched.seen
    assert_close(y, reference.group_norm(x, 3, weight.numpy()))


def test_exported_graphs_hold_standard_operators_only() -> None:
    norm, x = layer(), tensor(2, 12, 5, 5)
    exported = torch.export.export(norm, (x,))
    names = [str(n.target) for n in exported.graph.nodes if n.op == "call_function"]
    assert names == ["aten.group_norm.default", "aten.silu.default"]
    assert_close(exported.module()(x), norm(x).detach().double().numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out, and says so
        traced = torch.jit.trace(norm, (x,))
    assert "aten::group_norm" in str(traced.inlined_graph)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch's own, in its derivative formulas
def test_functional_transforms_and_forward_mode_match_eager() -> None:
    norm = layer()
    x, tangent = tensor(3, 12, 4, 4), tensor(3, 12, 4, 4, seed=1)
    parameters: dict[str, Tensor] = dict(norm.named_parameters())

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(norm, values, (sample[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        eager = torch.autograd.grad(norm(sample[None]).square().sum(), list(norm.parameters()))
        for name, gradient in zip(("weight", "bias"), eager, strict=True):
            assert_close(per_sample[name][i], gradient.double().numpy())

    jacobian = torch.func.jacrev(norm)(x[:1])
    through_jvp: Tensor = torch.func.jvp(norm, (x[:1],), (tangent[:1],))[1]
    assert_close(through_jvp, torch.tensordot(jacobian, tangent[:1], dims=4).detach().double().numpy())
    with forward_ad.dual_level():
        dual = norm(forward_ad.make_dual(x[:1], tangent[:1]))
        assert_close(forward_ad.unpack_dual(dual).tangent, through_jvp.detach().double().numpy())
