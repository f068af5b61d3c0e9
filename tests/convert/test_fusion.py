"""What a norm takes in where `fuse=True`, and what it leaves alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from batchfree.convert import convert, plan_conversion
from batchfree.torch import GroupNorm

ACTIVATIONS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("relu", nn.ReLU()),
    ("relu", nn.ReLU(inplace=True)),
    ("silu", nn.SiLU(inplace=True)),
    ("gelu", nn.GELU()),
    ("gelu_tanh", nn.GELU(approximate="tanh")),
    ("relu", F.relu),
    ("relu", torch.relu),
    ("relu", torch.relu_),
    ("relu", lambda x: x.relu()),
    ("relu", lambda x: x.relu_()),
    ("silu", lambda x: F.silu(x, inplace=True)),
    ("gelu", F.gelu),
    ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
]


class Block(nn.Module):
    """A residual block that writes its activation and its sum as it is told."""

    def __init__(self, act: Callable[[Tensor], Tensor], total: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.act, self.total = act, total

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.act(self.norm1(self.conv1(x)))
        x = self.total(self.norm2(self.conv2(x)), shortcut)
        return self.act(x)


def augmented(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


SUMS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda a, b: a + b,
    lambda a, b: b + a,
    augmented,
    torch.add,
    lambda a, b: a.add(b),
    lambda a, b: a.add_(b),
]


def outputs_and_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    model.zero_grad()
    output = model(x)
    output.backward(torch.randn(output.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1)))
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert x.grad is not None
    return found | {"output": output.detach(), "input": x.grad}


def assert_fused_agrees(model: nn.Module, x: Tensor, **options: Any) -> nn.Module:
    """Unfused and fused give the same outputs and gradients; returns the fused one."""
    model, x = model.double(), x.double()
    unfused = convert(model, example_inputs=x, **options)
    fused = convert(model, example_inputs=x, fuse=True, **options)
    assert [*fused.state_dict()] == [*unfused.state_dict()]
    expected, found = outputs_and_gradients(unfused, x), outputs_and_gradients(fused, x)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)
    return fused


@pytest.mark.parametrize(("name", "act"), ACTIVATIONS)
def test_every_way_to_write_an_activation_is_taken_in(name: str, act: Callable[[Tensor], Tensor]) -> None:
    fused: Any = assert_fused_agrees(Block(act, SUMS[0]), torch.randn(2, 8, 6, 5))
    assert (fused.norm1.activation, fused.norm2.activation) == (name, name)


@pytest.mark.parametrize("total", SUMS)
def test_every_way_to_write_a_sum_is_taken_in(total: Callable[[Tensor, Tensor], Tensor]) -> None:
    model, x = Block(nn.ReLU(inplace=True), total), torch.randn(2, 8, 6, 5)
    assert [row.fuses for row in plan_conversion(model, x).rows] == ["relu", "residual + relu"]
    assert_fused_agrees(model, x)


def test_resnet_takes_in_every_activation_and_every_sum() -> None:
    model = torchvision.models.resnet50(weights=None, num_classes=3)
    x = torch.randn(1, 3, 32, 32)
    fuses = [row.fuses for row in plan_conversion(model, x).rows]
    assert (fuses.count("relu"), fuses.count("residual + relu"), fuses.count(None)) == (33, 16, 4)
    calls: list[bool] = []
    fused = assert_fused_agrees(model, x)
    for module in fused.modules():
        if isinstance(module, (nn.ReLU, GroupNorm)):
            module.register_forward_hook(lambda module, *_: calls.append(isinstance(module, GroupNorm)))
    fused(x.double())
    assert calls == [True] * 53


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_b0"])
def test_timms_networks_agree(name: str) -> None:
    assert_fused_agrees(timm.create_model(name, num_classes=3).eval(), torch.randn(1, 3, 32, 32))


def test_a_fused_block_is_still_what_it_was() -> None:
    model = torchvision.models.resnet18(weights=None)
    x = torch.randn(1, 3, 32, 32)
    called: list[str] = []
    model.layer1[0].register_forward_hook(lambda *_: called.append("hook"))
    fused: Any = convert(model, example_inputs=x, fuse=True).eval()
    assert isinstance(fused.layer1[1], torchvision.models.resnet.BasicBlock)
    assert fused.layer1[1].stride == 1
    assert type(model.layer1[1]) is torchvision.models.resnet.BasicBlock
    called.clear()
    expected = fused(x)
    assert called == ["hook"]
    fused.layer1[0]._forward_hooks.clear()  # a lambda does not pickle
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert torch.equal(twin(x), expected)
        assert type(twin.layer1[0]) is type(fused.layer1[0])
        assert twin.train().layer1[0].training
    exported = torch.export.export(fused, (x,)).module()
    assert torch.allclose(exported(x), expected, atol=1e-5)


UNUSED: Any = None


class Reads(nn.Module):
    """One norm, and what its forward does with the output."""

    def __init__(self, does: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
        self.bias, self.pool, self.drop = nn.Parameter(torch.ones(8, 1, 1)), nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5)
        self.does = does

    def forward(self, x: Tensor) -> Any:
        return self.does(self, x, self.norm(self.conv(x)))


class Optional(Reads):
    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        y = self.norm(self.conv(x))
        return F.relu(y if scale is None else y * scale)


class Remembers(Reads):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(x))
        self.last = x
        return F.relu(y)


class OtherMethod(Reads):
    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.features(x))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Reads(lambda m, x, y: m.act(y) + y), "something else reads its output"),
        (Reads(lambda m, x, y: F.relu(y) if m.training else F.silu(y)), "depends on the training flag"),
        (Reads(lambda m, x, y: F.dropout(F.relu(y), 0.1, m.training)), "depends on the training flag"),
        (Reads(lambda m, x, y: y), "leaves Reads.forward"),
        (Reads(lambda m, x, y: m.act(m.drop(y))), "no ReLU, SiLU or GELU"),
        (Reads(lambda m, x, y: F.leaky_relu(y)), "no ReLU, SiLU or GELU"),
        (Reads(lambda m, x, y: F.relu(y + 1)), "not one other tensor"),
        (Reads(lambda m, x, y: F.relu(y + y)), "not one other tensor"),
        (Reads(lambda m, x, y: F.relu(torch.add(y, x, alpha=2))), "no ReLU, SiLU or GELU"),
        (Reads(lambda m, x, y: F.relu(y + m.pool(x))), "another shape"),
        (Reads(lambda m, x, y: F.relu(y + m.bias)), "shape of what is added to it was not seen"),
        (Reads(lambda m, x, y: F.relu(y if x.sum() > 1e9 else y + x)), "cannot be traced"),
        (Optional(UNUSED), "optional arguments"),
        (OtherMethod(UNUSED), "its method features uses the same layers"),
        (Remembers(UNUSED), "sets self.last"),
        (Reads(lambda m, x, y: torch.relu(input=y)), "no ReLU, SiLU or GELU"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_where_something_is_in_the_way_the_norm_is_left_alone_with_the_reason(model: nn.Module, reason: str) -> None:
    x = torch.randn(1, 8, 4, 4)
    row = plan_conversion(model, x).rows[0]
    assert row.fuses is None
    assert row.not_fused is not None
    assert reason in row.not_fused
    fused: Any = convert(model, example_inputs=x, fuse=True)
    assert fused.norm.activation is None
    assert type(fused) is type(model)
    plain: Any = convert(model, example_inputs=x)
    assert torch.equal(fused.eval()(x), plain.eval()(x))


def test_a_norm_or_an_activation_with_a_hook_is_left_alone() -> None:
    for index in (1, 2):
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        seen: list[Tensor] = []
        model[index].register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(output))
        fused: Any = convert(model, fuse=True)
        assert fused[1].activation is None
        fused(torch.randn(1, 3, 4, 4))
        assert len(seen) == 1


def test_a_convolution_that_something_else_changes_before_the_sum_keeps_its_norm_in_place() -> None:
    def change(model: Any, x: Tensor) -> Tensor:
        mapped = model.conv(x)
        y = model.norm(mapped)
        mapped.zero_()
        return F.relu(y + x)

    class Changes(Reads):
        def forward(self, x: Tensor) -> Any:
            return change(self, x)

    model, x = Changes(UNUSED), torch.randn(1, 8, 4, 4)
    row = plan_conversion(model, x).rows[0]
    assert row.not_fused == "its input is not the output of a convolution that nothing else reads"


def test_a_sum_without_inputs_is_not_taken_in_since_its_shapes_are_not_known() -> None:
    model = Block(nn.ReLU(), SUMS[0])
    first, second = plan_conversion(model).rows
    assert first.fuses == "relu"
    assert second.fuses is None
    assert "Pass example_inputs" in str(second.not_fused)
    fused: Any = convert(model, fuse=True)
    x = torch.randn(2, 8, 4, 4)
    assert torch.allclose(fused(x), convert(model)(x), atol=1e-5)
