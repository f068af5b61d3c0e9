from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchfree.convert import calibrate, convert
from batchfree.convert._norm_maps import NormMaps
from batchfree.convert._norm_pairs import norm_pairs
from tests.convert.trained import images, trained_like


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.norm1 = nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(first)) + first)


def outputs_of_norms(network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: found.update({name: output.double()}))
        for name, module in network.named_modules()
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm))
    ]
    with torch.no_grad():
        network(batch)
    for handle in handles:
        handle.remove()
    return found


def distance(original: nn.Module, converted: nn.Module, batch: Tensor) -> float:
    maps = NormMaps(norm_pairs(original, converted))
    with torch.no_grad(), maps.recording():
        original(batch)
        converted(batch)
        return float(maps.distance())


def relative_error(wanted: Tensor, given: Tensor) -> float:
    return float((wanted - given).square().mean() / wanted.var(unbiased=False))


@pytest.mark.parametrize("fuse", [False, True])
def test_the_distance_is_that_of_the_norms_outputs_whatever_was_fused(fuse: bool) -> None:
    original: Any = trained_like(Residual())
    batch = images(6, 4, 9, 8, dtype=torch.float32)
    plain = convert(original, num_groups=2)
    wanted, given = outputs_of_norms(original, batch), outputs_of_norms(plain, batch)
    errors = [relative_error(wanted[name], given[name]) for name in ("norm1", "norm2")]
    converted = convert(original, num_groups=2, fuse=fuse, example_inputs=batch)
    assert distance(original, converted, batch) == pytest.approx(sum(errors) / 2, rel=1e-4)


def test_its_gradient_reaches_every_layer_before_a_norm() -> None:
    original: Any = trained_like(Residual())
    batch = images(6, 4, 9, 8, dtype=torch.float32)
    converted = convert(original, num_groups=2)
    maps = NormMaps(norm_pairs(original, converted))
    with maps.recording():
        original(batch)
        converted(batch)
        error = maps.distance()
    error.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in converted.parameters())
    assert all(parameter.grad is None for parameter in original.parameters())


def test_norms_that_meet_maps_of_other_shapes_are_left_out() -> None:
    original: Any = trained_like(Residual())
    converted = convert(original, num_groups=2)
    maps = NormMaps(norm_pairs(original, converted))
    with torch.no_grad(), maps.recording():
        original(images(6, 4, 9, 8, dtype=torch.float32))
        converted(images(5, 4, 9, 8, dtype=torch.float32))
        assert maps.distance() == 0


def test_whatever_happens_no_hook_and_no_map_stays() -> None:
    original: Any = trained_like(Residual())
    converted = convert(original, num_groups=2)
    maps = NormMaps(norm_pairs(original, converted))
    batch = images(6, 4, 9, 8, dtype=torch.float32)
    kept: list[Any] = []
    handle = original.norm1.register_forward_pre_hook(lambda norm, inputs: kept.append(weakref.ref(inputs[0])))

    def interrupted() -> None:
        with torch.no_grad(), maps.recording():
            original(batch)
            assert kept[0]() is not None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    handle.remove()
    assert kept[0]() is None
    assert not any(module._forward_pre_hooks for network in (original, converted) for module in network.modules())


def test_without_running_statistics_the_batchs_are_the_old_norms() -> None:
    original: Any = Residual().eval()
    original.norm1 = nn.BatchNorm2d(16, track_running_stats=False)
    batch = images(6, 4, 9, 8, dtype=torch.float32)
    converted = convert(original, num_groups=2)
    wanted, given = outputs_of_norms(original, batch), outputs_of_norms(converted, batch)
    errors = [relative_error(wanted[name], given[name]) for name in ("norm1", "norm2")]
    assert distance(original, converted, batch) == pytest.approx(sum(errors) / 2, rel=1e-4)


def test_every_call_of_a_shared_norm_counts_and_bfloat16_is_compared_in_float32() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(F.relu(self.norm(x)) * 3)

    original: Any = trained_like(Twice())
    converted: Any = convert(original, num_groups=2)
    batch = images(6, 16, 9, 8, dtype=torch.float32)
    with torch.no_grad():
        networks = (original, converted)
        first = [network.norm(batch).double() for network in networks]
        second = [
            network.norm(F.relu(made.float()) * 3).double() for network, made in zip(networks, first, strict=True)
        ]
    expected = (relative_error(*first) + relative_error(*second)) / 2
    assert distance(original, converted, batch) == pytest.approx(expected, rel=1e-4)
    halves = original.bfloat16(), converted.bfloat16()
    assert distance(*halves, batch.bfloat16()) == pytest.approx(expected, rel=0.02)


def test_calibration_brings_the_maps_nearer() -> None:
    original: Any = trained_like(Residual())
    batch = images(12, 4, 9, 8, dtype=torch.float32)
    converted = convert(original, num_groups=2)
    before = distance(original, converted, batch)
    calibrate(converted, original, batch)
    assert distance(original, converted, batch) < 0.5 * before
