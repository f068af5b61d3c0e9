from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchfree.convert import calibrate, convert
from batchfree.errors import ArgumentError, ConversionError
from batchfree.torch import GroupNorm
from tests.convert.trained import affine, images, small_network, trained_like


class Failing(nn.Module):
    def __init__(self, message: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16)
        self.message = message

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.message:
            raise RuntimeError(self.message)
        return y


@pytest.mark.parametrize("broken", ["original", "converted"])
def test_a_network_that_fails_midway_leaves_no_thread_and_no_change(broken: str) -> None:
    original: Any = Failing("")
    converted: Any = convert(original, num_groups=2)
    (original if broken == "original" else converted).message = "out of luck"
    before = affine(converted)
    threads = threading.active_count()
    with pytest.raises(ArgumentError, match="out of luck") as caught:
        calibrate(converted, original, list(images(6, 16, 4, 4, dtype=torch.float32).split(2)))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert threading.active_count() == threads
    assert all(torch.equal(a, b) for a, b in zip(affine(converted), before, strict=True))
    assert original.training
    assert converted.training
    assert not converted.norm._forward_pre_hooks


def with_nan(x: Tensor) -> Tensor:
    x = x.clone()
    x[2, 0, 1, 1] = torch.nan
    return x


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: images()[:0], "no images"),
        (list, "no images"),
        (lambda: iter(()), "no images"),
        (lambda: with_nan(images()), "NaN"),
        (lambda: [images(), images() * torch.inf], "batch 1 .* NaN or infinity"),
        (lambda: images(4, 5, 9, 8), r"cannot run on a batch of \(4, 5, 9, 8\)"),
        (lambda: images().byte(), "cannot run"),
        (lambda: 3, "int was given"),
        (lambda: "images/", "str was given"),
    ],
    ids=["empty", "no-batch", "exhausted", "nan", "infinite", "shape", "bytes", "number", "path"],
)
def test_unusable_images_are_refused_and_nothing_changes(given: Callable[[], Any], message: str) -> None:
    original = small_network()
    converted = convert(original, num_groups=2)
    before = affine(converted)
    with pytest.raises(ArgumentError, match=message):
        calibrate(converted, original, given())
    assert all(torch.equal(a, b) for a, b in zip(affine(converted), before, strict=True))


@pytest.mark.parametrize("shape", [(4, 5, 6, 6), (4,)])
def test_images_that_reach_a_norm_with_other_channels_are_refused(shape: tuple[int, ...]) -> None:
    original = nn.Sequential(trained_like(nn.BatchNorm2d(16)))
    with pytest.raises(ArgumentError, match=re.escape(f"cannot run on a batch of {shape}")):
        calibrate(convert(original, num_groups=2), original, torch.randn(shape))


def test_infinities_inside_the_networks_are_refused_by_the_norms_name() -> None:
    original: Any = small_network()
    with torch.no_grad():
        original[3].weight.fill_(torch.inf)
    converted = convert(original, num_groups=2)
    before = affine(converted)
    with pytest.raises(ArgumentError, match="before the norm '4'"):
        calibrate(converted, original, images())
    assert all(torch.equal(a, b) for a, b in zip(affine(converted), before, strict=True))
    original = small_network()
    original[1].running_var[0] = torch.nan
    with pytest.raises(ArgumentError, match="norm '1' holds NaN"):
        calibrate(convert(original, num_groups=2), original, images())


class Ordered(nn.Module):
    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        for index in self.order:
            x = self.norms[index](x)
        return x


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 1), (0, 1, 2, 2), ()])
def test_networks_that_pass_other_norms_are_refused(order: tuple[int, ...]) -> None:
    original: Any = Ordered((0, 1, 2))
    converted: Any = convert(original, num_groups=2)
    converted.order = order
    before = affine(converted)
    with pytest.raises(ConversionError, match="disagree in architecture"):
        calibrate(converted, original, images(4, 16, 4, 4, dtype=torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(affine(converted), before, strict=True))


def test_batches_that_take_different_ways_are_refused() -> None:
    class Either(Ordered):
        def forward(self, x: Tensor) -> Tensor:
            return self.norms[0 if len(x) > 1 else 1](x)

    original = Either(())
    with pytest.raises(ConversionError, match=r"different ways.*and one came to the norm"):
        calibrate(convert(original, num_groups=2), original, [images(n, 16, 4, 4, dtype=torch.float32) for n in (2, 1)])


def test_networks_that_do_not_fit_together_are_refused() -> None:
    original = small_network()
    converted: Any = convert(original, num_groups=2)
    with pytest.raises(ConversionError, match="no Group Norm"):
        calibrate(original, original, images())
    with pytest.raises(ConversionError, match="no Group Norm"):
        calibrate(original, converted, images())
    converted[4] = nn.Identity()
    with pytest.raises(ConversionError, match="4: a BatchNorm2d in the original, a Identity here"):
        calibrate(converted, original, images())
    converted[4] = GroupNorm(2, 64)
    with pytest.raises(ConversionError, match="32 channels in the original, 64 here"):
        calibrate(converted, original, images())
    with pytest.raises(ArgumentError, match="Did you mean keep"):
        calibrate(converted, original, images(), groups="kep")  # type: ignore[arg-type]


def test_a_failure_puts_groups_and_eps_back_too() -> None:
    original: Any = Failing("")
    converted: Any = convert(original, num_groups=2)
    converted.message = "out of luck"
    brightness = torch.linspace(0.2, 3, 6).reshape(-1, 1, 1, 1)
    with pytest.raises(ArgumentError, match="out of luck"):
        calibrate(converted, original, images(6, 16, 4, 4, dtype=torch.float32) * brightness, groups="auto", eps="auto")
    assert (converted.norm.num_groups, converted.norm.eps) == (2, 1e-5)


def test_what_is_no_network_is_refused() -> None:
    network: Any = "resnet18"
    with pytest.raises(ArgumentError, match="a str was given as a network"):
        calibrate(convert(small_network()), network, images())
