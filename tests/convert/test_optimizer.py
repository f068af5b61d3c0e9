from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from batchfree.convert import convert
from batchfree.errors import ArgumentError
from batchfree.torch import WSConv2d


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()


def two_groups(model: nn.Sequential, **options: Any) -> torch.optim.SGD:
    decay, others = list(model[0].parameters()), [*model[3].parameters(), *model[1].parameters()]
    return torch.optim.SGD([{"params": decay, "weight_decay": 0.1}, {"params": others, "lr": 0.5}], 0.25, 0.9)


def test_the_optimiser_holds_the_copys_parameters_in_the_same_groups_with_their_momentum() -> None:
    model = network()
    optimizer = two_groups(model)
    trained(model, optimizer)
    momentum = {name: optimizer.state[parameter]["momentum_buffer"] for name, parameter in model.named_parameters()}
    converted: Any = convert(model, optimizer=optimizer)
    first, second = optimizer.param_groups
    assert (first["lr"], first["weight_decay"], second["lr"], second["weight_decay"]) == (0.25, 0.1, 0.5, 0)
    wanted = [*converted[0].parameters()], [*converted[3].parameters(), *converted[1].parameters()]
    for group, expected in zip(optimizer.param_groups, wanted, strict=True):
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in expected]
    for name, parameter in converted.named_parameters():
        assert optimizer.state[parameter]["momentum_buffer"] is momentum[name]
    assert len(optimizer.state) == len(momentum)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = [parameter.clone() for parameter in converted.parameters()]
    trained(converted, optimizer)
    assert not any(torch.equal(old, new) for old, new in zip(weights, converted.parameters(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gains_and_offsets_join_the_group_of_their_weight() -> None:
    model = network()
    optimizer = two_groups(model)
    converted: Any = convert(model, ws=True, optimizer=optimizer)
    assert isinstance(converted[0], WSConv2d)
    ids = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    assert ids[0] == [id(converted[0].get_parameter(name)) for name in ("weight", "bias", "gain", "offset")]
    assert len(ids[1]) == 4


def test_named_parameters_get_names() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.named_parameters())
    converted = convert(model, ws=True, optimizer=optimizer)
    (group,) = optimizer.param_groups
    assert set(group["param_names"]) == {name for name, _ in converted.named_parameters()}
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        assert converted.get_parameter(name) is parameter


def test_a_fresh_affine_starts_without_momentum() -> None:
    model = network()
    optimizer = two_groups(model)
    trained(model, optimizer)
    converted: Any = convert(model, affine="fresh", optimizer=optimizer)
    assert converted[1].weight not in optimizer.state
    assert converted[0].weight in optimizer.state
    assert any(parameter is converted[1].weight for parameter in optimizer.param_groups[1]["params"])


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD(network().parameters()), torch.optim.SGD([nn.Parameter(torch.ones(1))]), "adam"]
)
def test_an_optimiser_of_something_else_is_refused_and_left_alone(optimizer: Any) -> None:
    held = [*optimizer.param_groups[0]["params"]] if isinstance(optimizer, torch.optim.Optimizer) else []
    with pytest.raises(ArgumentError, match="optimizer"):
        convert(network(), optimizer=optimizer)
    if held:
        assert all(a is b for a, b in zip(held, optimizer.param_groups[0]["params"], strict=True))
