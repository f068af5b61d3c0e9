"""torch.compile: the kernels as operators that it can neither break a graph at nor look into."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck

from batchfree.torch import Activation, GroupNorm, WSConv2d, group_norm

OPERATORS: Any = torch.ops.batchfree


@pytest.fixture(autouse=True)
def _forget_compiled() -> None:
    torch._dynamo.reset()


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def check(operator: Any, *arguments: Any) -> None:
    """The fake kernel against the real one, no hidden mutation, autograd registered, and compiled with any shape."""
    torch.library.opcheck(operator, arguments)


def detached(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in values)


CASES: dict[str, tuple[Tensor, torch.dtype | None, Activation | None, bool]] = {
    "plain": (tensor(2, 12, 5, 4), None, None, False),
    "channels-last": (
        tensor(2, 12, 5, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last), torch.float32, "silu", True
    ),
    "strided": (tensor(2, 24, 5, 4, dtype=torch.float16)[:, ::2], torch.float16, "relu", False),
    "expanded": (tensor(2, 12, 1, dtype=torch.float64).expand(2, 12, 4), torch.float64, None, True),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own
@pytest.mark.parametrize("case", CASES)
def test_operators_keep_the_dispatchers_rules(case: str) -> None:
    x, parameter_dtype, activation, has_residual = CASES[case]
    weight, bias = (None if parameter_dtype is None else tensor(12, seed=i, dtype=parameter_dtype) for i in (1, 2))
    residual = tensor(*x.shape, seed=3, dtype=x.dtype) if has_residual else None
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, residual)]
    check(OPERATORS.group_norm, leaves[0], 3, leaves[1], leaves[2], 1e-5, activation, leaves[3])
    arguments = (x, 3, weight, bias, 1e-5, activation, residual)
    _, moments = OPERATORS.group_norm(*arguments)
    upstream = tensor(*x.shape, seed=4, dtype=x.dtype)
    wanted = [True, weight is not None, False, has_residual and activation is not None]
    check(OPERATORS.group_norm_backward, upstream, *arguments, moments, wanted)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_weight_standardizations_operators_keep_the_dispatchers_rules() -> None:
    weight = tensor(6, 3, 3, 3).to(memory_format=torch.channels_last)
    check(OPERATORS.standardize_weight, weight.clone().requires_grad_(), "qiao", 1e-5)
    _, moments = OPERATORS.standardize_weight(weight, "qiao", 1e-5)
    check(OPERATORS.standardize_weight_backward, tensor(6, 3, 3, 3, seed=1), weight, moments, "qiao", 1e-5)


class Block(nn.Module):
    """A residual block as networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = WSConv2d(12, 12, 3, padding=1)
        self.second = GroupNorm(3, 12, activation="gelu")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x), residual=x)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_a_compiled_network_is_one_graph_for_all_sizes_and_has_eagers_bits(format: torch.memory_format) -> None:
    network = Block()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, backend=counter, fullgraph=True, dynamic=True)
    for shape in ((2, 12, 6, 5), (3, 12, 9, 8), (4, 12, 7, 7)):
        x = tensor(*shape).to(memory_format=format)
        upstream = tensor(*shape, seed=1)
        found = []
        for call in (compiled, network):
            leaf = x.detach().requires_grad_()
            y = call(leaf)
            found.append([y, *torch.autograd.grad(y, [leaf, *network.parameters()], upstream)])
        for got, expected in zip(*found, strict=True):
            assert torch.equal(got, expected)
            assert got.stride() == expected.stride()
    # Of torch's own GroupNorm too, the compiler counts a second graph, without a node.
    (targets,) = filter(
        None, ([str(n.target) for n in g.graph.nodes if n.op == "call_function"] for g in counter.graphs)
    )
    assert {"batchfree.group_norm", "batchfree.standardize_weight"} <= set(targets)


def test_what_the_operators_cannot_take_compiles_to_torchs_own() -> None:
    counter = CompileCounterWithBackend("eager")
    norm = GroupNorm(3, 12, activation="relu")
    x = tensor(2, 12, 5)

    def per_sample(samples: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(lambda sample: norm(sample[None]).square().sum()))(samples)

    compiled = torch.compile(per_sample, backend=counter, fullgraph=True)
    assert torch.equal(compiled(x), per_sample(x))
    assert "batchfree" not in str(counter.graphs[0].graph)
    mixed = torch.compile(lambda r: norm(x, residual=r), backend="eager", fullgraph=True)
    assert mixed(x.double()).dtype is norm(x, residual=x.double()).dtype is torch.float64


def test_gradients_of_the_operators_can_be_differentiated() -> None:
    x, weight, skip = (tensor(*s, seed=i, dtype=torch.float64) for i, s in enumerate([(2, 4, 3), (4,), (2, 4, 3)]))

    def norm(x: Tensor, weight: Tensor, skip: Tensor) -> Tensor:
        return OPERATORS.group_norm(x, 2, weight, None, 1e-5, "silu", skip)[0]

    leaves = [t.requires_grad_() for t in (x, weight, skip)]
    assert gradcheck(norm, leaves)
    assert gradgradcheck(norm, leaves)
    filters = tensor(3, 2, 2, dtype=torch.float64).requires_grad_()
    assert gradgradcheck(lambda w: OPERATORS.standardize_weight(w, "bit", 1e-3)[0], [filters])


def test_operators_take_empty_batches() -> None:
    x, weight = torch.empty(0, 4, 3).requires_grad_(), torch.ones(4).requires_grad_()
    y = torch.compile(lambda x: group_norm(x, 2, weight, activation="relu"), backend="aot_eager", fullgraph=True)(x)
    assert y.shape == (0, 4, 3)
    of_input, of_weight = torch.autograd.grad(y, [x, weight], torch.empty(0, 4, 3))
    assert of_input.shape == (0, 4, 3)
    assert torch.equal(of_weight, torch.zeros(4))
