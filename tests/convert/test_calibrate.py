from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from batchfree.convert import calibrate, convert
from batchfree.torch import GroupNorm
from tests.convert.trained import affine, images, small_network, trained_like

Array = npt.NDArray[np.float64]


def input_of(network: nn.Module, name: str, batch: Tensor) -> Array:
    """What reaches a module, from a run of its own."""
    seen: list[Array] = []
    hook = network.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0].numpy()))
    with torch.no_grad():
        network(batch)
    hook.remove()
    return seen[0]


def by_hand(old: Any, x: Array, y: Array, num_groups: int) -> tuple[Array, Array, float]:
    """Weight, bias and fit error of one norm from whole maps, by the formulas as they are written."""
    statistics = [value.detach().numpy() for value in (old.running_mean, old.running_var, old.weight, old.bias)]
    mean, variance, gamma, beta = (value.reshape(1, -1, 1, 1) for value in statistics)
    t = gamma * (x - mean) / np.sqrt(variance + old.eps) + beta
    grouped = y.reshape(len(y), num_groups, -1)
    spread = np.sqrt(grouped.var(2, keepdims=True) + old.eps)
    z = ((grouped - grouped.mean(2, keepdims=True)) / spread).reshape(y.shape)
    axes = (0, 2, 3)
    weight = np.where(gamma.ravel() < 0, -1, 1) * t.std(axes) / z.std(axes)
    bias = t.mean(axes) - weight * z.mean(axes)
    residual = t - weight.reshape(1, -1, 1, 1) * z - bias.reshape(1, -1, 1, 1)
    error = np.sqrt((residual**2).mean(axes).sum() / t.var(axes).sum())
    return weight, bias, float(error)


def test_weight_bias_and_error_are_the_closed_form_worked_out_on_whole_maps() -> None:
    original = small_network()
    converted: Any = convert(original, num_groups=2)
    batch = images()
    report = calibrate(converted, original, batch)
    for row, name in zip(report.rows, ("1", "4"), strict=True):  # "4" sees what the fitted "1" gives
        x, y = input_of(original, name, batch), input_of(converted, name, batch)
        weight, bias, error = by_hand(original.get_submodule(name), x, y, 2)
        assert row.name == name
        np.testing.assert_allclose(converted.get_submodule(name).weight.detach(), weight, rtol=1e-9)
        np.testing.assert_allclose(converted.get_submodule(name).bias.detach(), bias, rtol=1e-9, atol=1e-12)
        assert row.fit_error == pytest.approx(error, rel=1e-9)


def test_the_same_in_single_precision_with_a_mean_that_dwarfs_the_deviation() -> None:
    original: Any = nn.Sequential(nn.Identity(), trained_like(nn.BatchNorm2d(16)))
    original[1].running_mean.fill_(1e4)
    batch = images(6, 16, 5, 4, dtype=torch.float32) + 1e4
    converted: Any = convert(original, num_groups=2)
    report = calibrate(converted, original, batch)
    weight, bias, error = by_hand(original[1], batch.double().numpy(), batch.double().numpy(), 2)
    np.testing.assert_allclose(converted[1].weight.detach(), weight, rtol=1e-5)
    np.testing.assert_allclose(converted[1].bias.detach(), bias, rtol=1e-4, atol=1e-4)
    assert report.rows[0].fit_error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(
    "split",
    [
        lambda whole: list(whole.split(5)),
        lambda whole: DataLoader(TensorDataset(whole, torch.arange(len(whole))), batch_size=4),
        lambda whole: ((part, {"labels": 1}) for part in whole.split(1)),
        lambda whole: [{"input": part} for part in whole.split([3, 9])],
    ],
    ids=["list", "loader", "labelled", "keywords"],
)
def test_batches_give_what_one_big_batch_gives(split: Callable[[Tensor], Any]) -> None:
    original, whole = small_network(), images()
    one, many = convert(original, num_groups=2), convert(original, num_groups=2)
    expected, report = calibrate(one, original, whole), calibrate(many, original, split(whole))
    for a, b in zip(affine(one), affine(many), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for row, wanted in zip(report.rows, expected.rows, strict=True):
        assert row.fit_error == pytest.approx(wanted.fit_error, rel=1e-9)
    assert report.top1_agreement == pytest.approx(expected.top1_agreement)
    assert report.relative_error == pytest.approx(expected.relative_error)


def test_batches_of_different_sizes_weigh_by_their_values() -> None:
    original: Any = nn.Sequential(trained_like(nn.BatchNorm2d(16).double()))
    small, large = images(2, 16, 2, 2), images(3, 16, 8, 4) * 3 + 1
    converted: Any = convert(original, num_groups=1)
    calibrate(converted, original, [small, large])

    def values(x: Tensor) -> Array:
        return x.transpose(0, 1).reshape(16, -1).numpy()

    def z(x: Tensor) -> Tensor:
        return nn.functional.group_norm(x, 1)

    t = np.concatenate([values(original[0](x).detach()) for x in (small, large)], 1)
    normalized = np.concatenate([values(z(x)) for x in (small, large)], 1)
    expected = np.sign(original[0].weight.detach().numpy()) * t.std(1) / normalized.std(1)
    np.testing.assert_allclose(converted[0].weight.detach(), expected, rtol=1e-9)


def test_agreement_is_that_of_the_outputs() -> None:
    torch.manual_seed(0)
    original = nn.Sequential(small_network(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4).double()).eval()
    converted, batch = convert(original, num_groups=8), images(40)
    report = calibrate(converted, original, list(batch.split(16)))
    with torch.no_grad():
        wanted, given = original(batch).numpy(), converted(batch).numpy()
    assert report.top1_agreement == pytest.approx((wanted.argmax(1) == given.argmax(1)).mean())
    assert report.relative_error == pytest.approx(np.linalg.norm(wanted - given) / np.linalg.norm(wanted))
    assert 0 < (report.relative_error or 0) < 1


def test_only_the_new_norms_change_and_every_flag_comes_back() -> None:
    original = small_network()
    original.train()
    original[1].eval()
    converted: Any = convert(original, num_groups=2)
    before = {key: value.clone() for key, value in original.state_dict().items()}
    convolution = converted[0].weight.detach().clone()
    generator = torch.get_rng_state()
    calibrate(converted, original, images())
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())
    assert torch.equal(converted[0].weight, convolution)
    assert [module.training for module in original] == [True, False, True, True, True, True]
    assert [module.training for module in converted] == [True, False, True, True, True, True]
    assert torch.equal(torch.get_rng_state(), generator)
    assert converted[1].weight.requires_grad
    assert not any(module._forward_pre_hooks for network in (original, converted) for module in network)


def test_a_second_run_gives_the_same_bits() -> None:
    original, batch = small_network(torch.float32), images(dtype=torch.float32)
    first, second = convert(original, num_groups=2), convert(original, num_groups=2)
    calibrate(first, original, list(batch.split(5)))
    calibrate(second, original, list(batch.split(5)))
    assert all(torch.equal(a, b) for a, b in zip(affine(first), affine(second), strict=True))


class Pyramid(nn.Module):
    """A norm that several maps share, as a detector's head does, and one that only some inputs reach."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.BatchNorm2d(16)
        self.extra = nn.BatchNorm2d(16)

    def forward(self, x: Tensor, use_extra: bool = False) -> Tensor:
        pooled = nn.functional.avg_pool2d(self.shared(x), 2)
        y = self.shared(pooled * 2 - 1)
        return self.extra(y) if use_extra else y


def test_a_shared_norm_is_fitted_to_all_calls_seen_so_far() -> None:
    original: Any = trained_like(Pyramid().double())
    converted: Any = convert(original, num_groups=2)
    batch = images(6, 16, 8, 8)
    seen: list[tuple[Tensor, Tensor]] = []
    shared = converted.shared
    # what the converted network's two calls see while it is calibrated, fitted to the first alone in between
    hook = shared.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    calibrate(converted, original, batch)
    hook.remove()
    old_inputs: list[Tensor] = []
    original.shared.register_forward_pre_hook(lambda _, given: old_inputs.append(given[0]))
    with torch.no_grad():
        original(batch)
        t = [original.shared(x) for x in list(old_inputs)]
        z = [nn.functional.group_norm(y, 2) for y in seen]  # type: ignore[arg-type]
    flat_t, flat_z = (np.concatenate([v.transpose(0, 1).reshape(16, -1).numpy() for v in part], 1) for part in (t, z))
    sign = np.sign(original.shared.weight.detach().numpy())
    np.testing.assert_allclose(shared.weight.detach(), sign * flat_t.std(1) / flat_z.std(1), rtol=1e-9)


def test_norms_that_share_parameters_are_said_to() -> None:
    original: Any = small_network()
    original[4] = nn.BatchNorm2d(32).double().eval()
    original.append(nn.BatchNorm2d(32).double().eval())
    original[6].weight = original[4].weight
    report = calibrate(convert(original, num_groups=2), original, images())
    assert [("shares parameters" in row.note) for row in report.rows] == [False, True, True]
    assert "6" in report.rows[1].note


@pytest.mark.parametrize("missing", [("weight",), ("bias",), ("weight", "bias")])
def test_a_norm_without_weight_or_bias_is_fitted_by_what_it_has_and_its_error_is_its_own(missing: Any) -> None:
    original: Any = nn.Sequential(trained_like(nn.BatchNorm2d(16).double()))
    original[0].weight.data.abs_()
    for name in missing:
        original[0].register_parameter(name, None)
    converted: Any = convert(original, num_groups=2)
    batch = images(6, 16, 5, 4) * 3 + 1
    (row,) = calibrate(converted, original, batch).rows
    with torch.no_grad():
        t, given = original(batch).numpy(), converted(batch).numpy()
    axes = (0, 2, 3)
    expected = np.sqrt(((t - given) ** 2).mean(axes).sum() / t.var(axes).sum())
    assert row.fit_error == pytest.approx(expected, rel=1e-9)
    if "bias" not in missing:  # what it can still do: the means agree
        np.testing.assert_allclose(given.mean(axes), t.mean(axes), rtol=1e-9)
    assert all(name in row.note for name in missing)


def test_a_norm_that_is_not_reached_is_a_row_and_stays() -> None:
    original = trained_like(Pyramid().double())
    converted: Any = convert(original, num_groups=2)
    kept = converted.extra.weight.detach().clone()
    report = calibrate(converted, original, images(6, 16, 8, 8))
    assert [row.name for row in report.rows] == ["shared", "extra"]
    assert "not reached" in report.rows[1].note
    assert report.rows[1].fit_error is None
    assert torch.equal(converted.extra.weight, kept)
    assert any("extra" in warning for warning in report.warnings)
    calibrate(converted, original, images(6, 16, 8, 8), forward=lambda network, batch: network(batch, use_extra=True))
    assert not torch.equal(converted.extra.weight, kept)


def test_a_constant_channel_becomes_finite_and_is_noted() -> None:
    original: Any = small_network()
    with torch.no_grad():
        original[0].weight[3] = 0  # gives its bias everywhere
        original[1].weight[5] = 0  # the old norm gives its own bias everywhere
    converted: Any = convert(original, num_groups=1)
    report = calibrate(converted, original, images())
    assert report.rows[0].dead_channels == 2
    assert "constant" in str(report)
    assert converted[1].weight[[3, 5]].tolist() == [0, 0]
    assert converted[1].bias[5].item() == pytest.approx(original[1].bias[5].item())
    assert all(value.isfinite().all() for value in affine(converted))


def brute_force_groups(original: nn.Module, batch: Tensor, candidates: list[int]) -> int:
    errors = {}
    for groups in candidates:
        (row,) = calibrate(convert(original, num_groups=groups), original, batch).rows
        errors[groups] = row.fit_error
    return min(errors, key=lambda groups: errors[groups] or 0.0)


def test_auto_takes_the_groups_that_fit_best() -> None:
    batch = images(6, 48, 4, 4)
    batch[:, 24:] *= torch.rand(6, 1, 1, 1, generator=torch.Generator().manual_seed(2)).double() * 5 + 0.1
    for seed in range(3):
        original = nn.Sequential(trained_like(nn.BatchNorm2d(48).double(), seed))
        converted: Any = convert(original, "ln")
        report = calibrate(converted, original, batch, groups="auto")
        expected = brute_force_groups(original, batch, [1, 2, 3, 4, 6])
        assert converted[0].num_groups == expected == report.groups["0"]
        rebuilt = convert(original, groups=report.groups)
        rebuilt.load_state_dict(converted.state_dict())
        assert torch.equal(rebuilt(batch), converted(batch))


@pytest.mark.parametrize(("channels", "side", "finer"), [(4, 8, 2), (16, 1, 4), (6, 1, 2), (32, 4, 8)])
def test_auto_keeps_eight_channels_and_values_though_smaller_groups_fit_better(
    channels: int, side: int, finer: int
) -> None:
    original: Any = nn.Sequential(trained_like(nn.BatchNorm2d(channels).double()))
    batch = images(20, channels, side, side)
    # one group's worth of channels hardly matters, but its contrast, which differs by sample, disturbs its neighbours
    with torch.no_grad():
        original[0].weight[: channels // finer] = 1e-4
    batch[:, : channels // finer] *= torch.logspace(0, 2, 20, dtype=torch.float64).reshape(-1, 1, 1, 1)
    report = calibrate(convert(original, "ln"), original, batch, groups="auto")
    unbounded = calibrate(convert(original, num_groups=finer), original, batch)
    assert (unbounded.rows[0].fit_error or 1) < (report.rows[0].fit_error or 0)
    assert report.groups["0"] in {1, 2, 4}
    assert channels // report.groups["0"] >= min(8, channels)


def test_a_norm_without_running_statistics_is_fitted_to_its_batch() -> None:
    original: Any = nn.Sequential(trained_like(nn.BatchNorm2d(16, track_running_stats=False).double()))
    converted: Any = convert(original, num_groups=1)
    batch = images(6, 16, 5, 4) * 3 + 2
    calibrate(converted, original, batch)
    # over the batch each channel has deviation |weight| and mean bias
    with torch.no_grad():
        given = converted(batch)
    torch.testing.assert_close(given.std((0, 2, 3), correction=0), original[0].weight.detach().abs(), rtol=1e-4, atol=0)
    torch.testing.assert_close(given.mean((0, 2, 3)), original[0].bias.detach())


def test_labels_are_ignored_whatever_they_hold() -> None:
    original, batch = small_network(), images()
    converted, plain = convert(original, num_groups=2), convert(original, num_groups=2)
    labels = {"boxes": torch.zeros(0, 4), "score": torch.tensor([torch.nan])}
    calibrate(converted, original, [(batch, labels)])
    calibrate(plain, original, batch)
    assert all(torch.equal(a, b) for a, b in zip(affine(converted), affine(plain), strict=True))


def test_a_batch_that_is_a_named_tuple_reaches_forward_as_one() -> None:
    class Batch(NamedTuple):
        pixels: Tensor
        boxes: Tensor

    original = small_network()
    report = calibrate(
        convert(original, num_groups=2), original, [Batch(images(), torch.zeros(0, 4))],
        forward=lambda network, batch: network(batch.pixels),
    )  # fmt: skip
    assert all(row.fit_error is not None for row in report.rows)


FLOAT = torch.float32


def test_auto_eps_takes_the_best_of_its_candidates_and_reports_it() -> None:
    brightness = torch.linspace(0.2, 3, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    batch = images(9, 16, 6, 6) * brightness
    original: Any = nn.Sequential(trained_like(nn.BatchNorm2d(16).double()))
    converted: Any = convert(original, "ln")
    kept = calibrate(converted, original, batch)
    report = calibrate(converted, original, batch, eps="auto")
    x = batch.numpy()
    typical = x.reshape(9, -1).var(1).mean()
    errors = {}
    for eps in (1e-5, *(share * typical for share in (0.1, 0.3, 1))):
        norm: Any = nn.Sequential(GroupNorm(1, 16, eps=eps, dtype=torch.float64))
        errors[eps] = calibrate(norm, original, batch).rows[0].fit_error or 0.0
    best = min(errors, key=lambda eps: errors[eps])
    assert best > 1e-5
    assert report.eps["0"] == converted[0].eps == pytest.approx(best)
    assert report.rows[0].fit_error == pytest.approx(errors[best])
    assert (report.rows[0].fit_error or 1) < 0.7 * (kept.rows[0].fit_error or 0.0)
    again = calibrate(converted, original, batch, eps="auto")  # not from what it chose before
    assert again.eps == report.eps


def test_few_images_and_images_of_another_scale_are_warned_of() -> None:
    torch.manual_seed(0)
    original: Any = small_network()
    for norm in (original[1], original[4]):
        norm.momentum = 1.0
    with torch.no_grad():
        original.train()(images(64))  # its running statistics are those of such images
    original.eval()
    report = calibrate(convert(original), original, images(64))
    assert report.images == 64
    assert report.unlikeness == pytest.approx(1, abs=0.1)
    assert report.warnings == ()
    assert "images: 64" in str(report)
    report = calibrate(convert(original), original, list(images(20).split(7)))
    assert report.images == 20
    (warning,) = calibrate(convert(original), original, images(15)).warnings
    assert "fitted to 15 images" in warning
    for scale in (100, 0.01):
        report = calibrate(convert(original), original, images(64) * scale)
        assert any("not like those of the training" in warning for warning in report.warnings)
    torch.testing.assert_close(
        calibrate(convert(original), original, images(64) * 100).unlikeness, 100.0, rtol=0.3, atol=0
    )


def test_norms_that_fit_badly_are_counted_in_one_warning() -> None:
    original = small_network()
    brightness = torch.logspace(-2, 2, 20, dtype=torch.float64).reshape(-1, 1, 1, 1)
    report = calibrate(convert(original, "in"), original, images(20) * brightness)
    poor = [row for row in report.rows if row.fits_poorly]
    (warning,) = [warning for warning in report.warnings if "poorly" in warning]
    assert len(poor) == 2
    worst = max(poor, key=lambda row: row.fit_error or 0)
    assert warning.startswith(f"2 of 2 norms fit poorly, {worst.name} worst (error {worst.fit_error:.2f})")
