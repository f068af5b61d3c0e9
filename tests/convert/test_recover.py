from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchfree.convert import _recover, calibrate, convert, recover
from batchfree.convert._norm_maps import NormMaps
from batchfree.convert._norm_pairs import norm_pairs
from batchfree.errors import ArgumentError
from tests.convert.trained import affine, images, trained_like


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    with torch.no_grad():
        head[2].weight.mul_(30)  # type: ignore[operator]  # scores as sure as a trained network's
    return trained_like(nn.Sequential(*layers, *head))  # type: ignore[return-value]


def uneven_images(count: int = 60) -> Tensor:
    scale = torch.rand(count, 1, 1, 1, generator=torch.Generator().manual_seed(3)) * 4 + 0.2
    return images(count, 3, 9, 8, dtype=torch.float32) * scale


def calibrated(original: nn.Module, batch: Tensor) -> Any:
    converted = convert(original, num_groups=2)
    calibrate(converted, original, batch)
    return converted


def divergence(original: nn.Module, converted: nn.Module, batch: Tensor) -> float:
    """KL(original || converted) in float64, from the formula."""
    with torch.no_grad():
        p, q = (torch.softmax(network(batch).double(), 1).numpy() for network in (original, converted))
    return float((p * (np.log(p) - np.log(q))).sum(1).mean())


def test_outputs_come_nearer_on_images_that_it_never_saw() -> None:
    original, batch = classifier(), uneven_images(120)
    converted = calibrated(original, batch[:64])
    before = divergence(original, converted, batch[60:])
    report = recover(converted, original, batch[:60], 60, batch_size=16)
    assert divergence(original, converted, batch[60:]) < 0.8 * before
    assert report.loss_after < report.loss_before
    assert report.kept_step > 0
    assert (report.held_out, report.held_out_unit) == (12, "image")
    assert "by 12 held-out images\n" in str(report)
    assert f"{report.loss_after:.4g}" in str(report)


def test_only_the_affine_parameters_of_converted_norms_move_unless_all_are_asked_for() -> None:
    original, batch = classifier(), uneven_images()
    converted = calibrated(original, batch)
    converted[1].weight.requires_grad_(False)
    converted[0].weight.grad = torch.ones_like(converted[0].weight)
    before = {name: value.detach().clone() for name, value in converted.named_parameters()}
    old = {name: value.clone() for name, value in original.state_dict().items()}
    recover(converted, original, batch, 20)
    moved = {name for name, value in converted.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"1.weight", "1.bias", "4.weight", "4.bias"}
    assert not converted[1].weight.requires_grad
    assert converted[0].weight.requires_grad
    assert torch.equal(converted[0].weight.grad, torch.ones_like(converted[0].weight))
    assert converted[4].weight.grad is None
    recover(converted, original, batch, 20, parameters="all")
    moved = {name for name, value in converted.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(before)
    assert all(torch.equal(value, old[name]) for name, value in original.state_dict().items())


@pytest.mark.parametrize("parameters", ["norm", "all"])
@pytest.mark.parametrize("learning_rate", [1e5, 1e30])
def test_an_absurd_learning_rate_ends_no_worse_than_it_began(parameters: Any, learning_rate: float) -> None:
    original, batch = classifier(), uneven_images()
    converted = calibrated(original, batch)
    before = affine(converted)
    start = divergence(original, converted, batch)
    report = recover(converted, original, batch, 10, parameters=parameters, learning_rate=learning_rate)
    assert report.kept_step == 0
    assert report.loss_after == report.loss_before
    assert divergence(original, converted, batch) == start
    assert all(torch.equal(a, b) for a, b in zip(affine(converted), before, strict=True))


def test_a_learning_rate_that_is_too_high_is_halved_until_it_helps() -> None:
    original, batch = classifier(), uneven_images()
    converted = calibrated(original, batch)
    start = divergence(original, converted, batch)
    report = recover(converted, original, batch, 20, learning_rate=30.0)
    assert report.kept_step > 0
    assert divergence(original, converted, batch) < start


def test_a_seed_gives_the_same_bits_and_another_gives_others() -> None:
    original, batch = classifier(), uneven_images()
    results = []
    for seed in (0, 0, 1):
        converted = calibrated(original, batch)
        recover(converted, original, [(part, torch.zeros(len(part))) for part in batch.split(7)], 10, seed=seed)
        results.append(torch.cat([value.flatten() for value in affine(converted)]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_where_all_parameters_move_the_maps_are_followed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    original, batch = classifier(), uneven_images(120)
    seen, unseen = batch[:80], batch[80:]
    distances = []
    for share in (_recover.MAPS_SHARE["all"], 0.0):
        monkeypatch.setitem(_recover.MAPS_SHARE, "all", share)
        converted = convert(original, num_groups=2, ws="strict", example_inputs=batch[:1])
        calibrate(converted, original, seen)
        recover(converted, original, seen, 60, parameters="all", batch_size=16)
        maps = NormMaps(norm_pairs(original, converted))
        with torch.no_grad(), maps.recording():
            original(unseen)
            converted(unseen)
            distances.append(float(maps.distance()))
    assert distances[0] < 0.95 * distances[1]


def test_other_outputs_are_brought_nearer_by_their_squares() -> None:
    original: Any = nn.Sequential(trained_like(nn.BatchNorm1d(16)))
    converted = convert(original, "ln")
    batch = images(40, 16, 12, dtype=torch.float32) * torch.rand(40, 1, 1) * 3

    def error() -> float:
        with torch.no_grad():
            a, b = original(batch).double(), converted(batch).double()
        return float((a - b).square().sum() / a.square().sum())

    before = error()
    report = recover(converted, original, batch, 60, learning_rate=0.05)
    assert report.top1_agreement_before is None
    assert error() < 0.8 * before


@pytest.mark.parametrize("wrap", [lambda maps: {"0": maps}, lambda maps: [maps]], ids=["features", "list"])
def test_feature_maps_are_not_taken_for_class_scores(wrap: Callable[[Tensor], Any]) -> None:
    original: Any = nn.Sequential(trained_like(nn.BatchNorm2d(16)))
    batch = images(10, 16, 4, 4, dtype=torch.float32)
    run = lambda network, batch: wrap(network(batch))  # noqa: E731
    report = recover(convert(original, "ln"), original, batch, 2, forward=run)
    assert report.top1_agreement_before is None
    scores = recover(
        convert(original, "ln"), original, batch, 2, forward=lambda network, batch: {"out": network(batch)}
    )
    assert scores.top1_agreement_before is not None


def test_batches_of_several_inputs_are_taken_whole() -> None:
    original, batch = classifier(), uneven_images()
    converted = calibrated(original, batch)
    report = recover(
        converted,
        original,
        [(part, 2.0) for part in batch.split(10)],
        12,
        forward=lambda network, both: network(both[0] * both[1]),
    )
    assert (report.held_out, report.held_out_unit) == (1, "batch")
    assert report.kept_step > 0


def test_a_failure_after_it_had_helped_leaves_the_network_as_it_was_given() -> None:
    original, batch = classifier(), uneven_images()
    converted = calibrated(original, batch)
    before = affine(converted)

    def interrupt(done: int, total: int) -> None:
        if done == 15:  # of 20, each measured: what was kept by then is another state
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(converted, original, batch, 20, on_progress=interrupt)
    assert all(torch.equal(a, b) for a, b in zip(affine(converted), before, strict=True))


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        ({"steps": 0}, uneven_images, "steps=0"),
        ({"learning_rate": math.nan}, uneven_images, "learning_rate=nan"),
        ({"parameters": "norms"}, uneven_images, "Did you mean norm"),
        ({}, lambda: uneven_images(1), "At least two"),
        ({}, lambda: uneven_images() * math.nan, "NaN"),
        ({"forward": lambda network, batch: [len(batch)]}, uneven_images, "cannot be compared"),
        ({"forward": lambda network, batch: network(batch).detach()}, uneven_images, "no gradient"),
    ],
    ids=["steps", "rate", "parameters", "one", "nan", "outputs", "gradient"],
)
def test_what_cannot_work_is_refused_and_nothing_changes(
    arguments: dict[str, Any], given: Callable[[], Tensor], message: str
) -> None:
    original = classifier()
    converted = calibrated(original, uneven_images())
    converted.train()
    before = affine(converted)
    with pytest.raises(ArgumentError, match=message):
        recover(converted, original, given(), **arguments)
    assert all(torch.equal(a, b) for a, b in zip(affine(converted), before, strict=True))
    assert converted.training
    assert all(parameter.requires_grad for parameter in converted.parameters())
