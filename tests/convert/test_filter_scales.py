"""`calibrate(filters="auto")`: which filters it scales, by how much, and that nothing else changes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from batchfree.convert import calibrate, convert
from batchfree.convert._filter_scales import filter_scales
from batchfree.convert._map_moments import Observation, map_moments
from batchfree.errors import ArgumentError
from tests.convert.trained import affine, images, small_network, trained_like


def observed(y: Tensor) -> Observation:
    return Observation(map_moments(y), map_moments(y), None)


def means_of_groups(y: Tensor, num_groups: int) -> Tensor:
    return y.reshape(len(y), num_groups, -1).mean(2)


@pytest.mark.parametrize("num_groups", [1, 2])
def test_scaled_channels_have_one_deviation_and_means_that_cancel_as_well_as_any_signs_allow(num_groups: int) -> None:
    y = images(9, 16, 5, 4) * torch.logspace(-1.5, 0.9, 16, dtype=torch.float64).reshape(1, -1, 1, 1)
    y = y + y.std((0, 2, 3), keepdim=True) * images(9, 16, 1, 1)  # each sample's own mean
    scales = filter_scales([observed(y[:4]), observed(y[4:])], num_groups)
    scaled = y * scales.reshape(1, -1, 1, 1)
    deviations = scaled.std((0, 2, 3), correction=0)
    typical = y.var((0, 2, 3), correction=0).mean().sqrt()
    enlarged = scales.abs() < 9.99
    assert 4 < int(enlarged.sum()) < 16
    torch.testing.assert_close(deviations[enlarged], typical.expand(int(enlarged.sum())))
    torch.testing.assert_close(scales.abs()[~enlarged], torch.full((16 - int(enlarged.sum()),), 10.0).double())
    if num_groups == 2:  # 2^7 ways for each group
        for group in range(2):
            part = (y * scales.abs().reshape(1, -1, 1, 1))[:, 8 * group : 8 * group + 8].mean((2, 3))
            signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=8))).double()
            lengths = (part @ signs.T).var(0, correction=0)
            found = means_of_groups(scaled, 2)[:, group].var(correction=0) * 8**2
            assert found <= lengths.sort().values[8]  # among the best of 256, each of which is there twice
    plain = y * scales.abs().reshape(1, -1, 1, 1)
    assert means_of_groups(scaled, num_groups).var(0).mean() < 0.2 * means_of_groups(plain, num_groups).var(0).mean()


def test_a_constant_channel_keeps_its_filter() -> None:
    y = images(6, 16, 3, 3)
    y[:, 5] = 2
    assert filter_scales([observed(y)], 1)[5].abs() == 1
    assert filter_scales([observed(y)], 1).isfinite().all()


def test_signs_are_those_of_the_smallest_groups_that_may_be_chosen() -> None:
    original: Any = small_network()
    converted: Any = convert(original, "ln")
    batch = images() + 2 * images(12, 1, 1, 1)
    calibrate(converted, original, batch, groups="auto", eps="auto", filters="auto")
    with torch.no_grad():
        y = original[0](batch)
    scales = (converted[0].weight / original[0].weight).detach()[:, 0, 0, 0]
    torch.testing.assert_close(scales, filter_scales([observed(y)], 2))
    assert not torch.equal(scales.sign(), filter_scales([observed(y)], 1).sign())


@pytest.mark.parametrize("ws", [False, True])
def test_the_maps_are_those_of_the_scaled_filters_and_the_norms_fit_them(ws: bool) -> None:
    original: Any = small_network()
    original[3].bias.data.normal_()
    converted: Any = convert(original, num_groups=2, ws=ws)
    plain = [converted[index].standardized_weight() if ws else converted[index].weight for index in (0, 3)]
    plain = [weight.detach().clone() for weight in plain]
    batch = images()
    report = calibrate(converted, original, list(batch.split(5)), eps="auto", filters="auto")
    assert [row.filters_scaled for row in report.rows] == [True, True]
    assert "scaled" in str(report)
    for index, before in zip((0, 3), plain, strict=True):
        conv = converted[index]
        weight = conv.standardized_weight() if ws else conv.weight
        scales = (weight / before).flatten(1)
        torch.testing.assert_close(scales, scales[:, :1].expand_as(scales), rtol=1e-9, atol=0)
        torch.testing.assert_close(conv.bias, original[index].bias * scales[:, 0])
        assert (scales[:, 0] < 0).any()
        assert (scales[:, 0] > 0).any()
    # a run of its own gives the norms' outputs the old ones' means and deviations, as the fit promised
    with torch.no_grad():
        wanted, given = original[:5](batch), converted[:5](batch)
    torch.testing.assert_close(given.mean((0, 2, 3)), wanted.mean((0, 2, 3)))
    torch.testing.assert_close(given.std((0, 2, 3)), wanted.std((0, 2, 3)))
    assert all(((given - given.mean()) * (wanted - wanted.mean())).mean((0, 2, 3)) > 0)


def test_more_of_a_network_is_kept_and_convert_builds_it_again() -> None:
    torch.manual_seed(0)
    original = nn.Sequential(small_network(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4).double()).eval()
    batch = images(40) * torch.linspace(0.3, 3, 40, dtype=torch.float64).reshape(-1, 1, 1, 1)
    batch = batch + torch.linspace(-1, 1, 40, dtype=torch.float64)[torch.randperm(40)].reshape(-1, 1, 1, 1)
    errors = {}
    for filters in ("keep", "auto"):
        converted = convert(original, "ln")
        report = calibrate(converted, original, batch, eps="auto", filters=filters)
        errors[filters] = report.relative_error or 1.0
    assert errors["auto"] < 0.5 * errors["keep"]
    again = convert(original, groups=report.groups, eps=report.eps)
    again.load_state_dict(converted.state_dict())
    with torch.no_grad():
        assert torch.equal(again(batch), converted(batch))
    later = calibrate(converted, original, batch)  # the signs are in the filters now
    assert later.relative_error == pytest.approx(errors["auto"], rel=1e-6)


def layer(inputs: int = 8) -> nn.Conv2d:
    return nn.Conv2d(inputs, 8, 1)


class Readers(nn.Module):
    """Convolutions on whose outputs or filters others than one norm depend, and two that are their norms' alone."""

    names = (
        "own",
        "to_sum",
        "to_view",
        "to_two",
        "returned",
        "changed",
        "tied",
        "reused",
        "hooked",
        "twice",
        "norm_tied",
    )

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({name: layer() for name in self.names})
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(8) for name in self.names})
        self.second, self.also_tied = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.without_statistics = nn.BatchNorm2d(8, track_running_stats=False)
        self.to_plain, self.to_without, self.same = layer(), layer(), layer()
        self.same.register_parameter("weight", self.convs["tied"].get_parameter("weight"))
        self.also_tied.register_parameter("weight", self.norms["norm_tied"].get_parameter("weight"))
        self.convs["hooked"].register_forward_hook(lambda _conv, _given, output: F.gelu(output))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = {name: conv(x) for name, conv in self.convs.items()}
        z = self.norms["own"](y["own"])
        z = z + self.norms["to_sum"](y["to_sum"]) + y["to_sum"]
        z = z + self.norms["to_view"](y["to_view"]) * y["to_view"].mean((2, 3), keepdim=True)
        z = z + self.norms["to_two"](y["to_two"]) + self.second(y["to_two"])
        z = z + self.norms["returned"](y["returned"])
        z = z + self.norms["changed"](F.relu(y["changed"], inplace=True))
        z = z + self.norms["tied"](y["tied"]) + self.same(x)
        z = z + F.conv2d(F.relu(self.norms["reused"](y["reused"])), self.convs["reused"].get_parameter("weight"))
        z = z + self.norms["hooked"](y["hooked"])
        z = z + self.norms["twice"](y["twice"]) * self.norms["twice"](self.convs["twice"](2 * x.flip(2) + 1))
        z = z + self.norms["norm_tied"](y["norm_tied"]) + self.also_tied(x)
        return z + self.plain(self.to_plain(x)) + self.without_statistics(self.to_without(x)), y["returned"]


def test_only_filters_are_scaled_on_which_nothing_but_one_norm_depends() -> None:
    torch.manual_seed(0)
    original: Any = trained_like(Readers().double())
    converted: Any = convert(original, "ln")
    report = calibrate(converted, original, images(6, 8, 4, 4), eps="auto", filters="auto")
    assert [row.name for row in report.rows if row.filters_scaled] == ["norms.own", "without_statistics"]
    for name, module in original.named_modules():
        if isinstance(module, nn.Conv2d):
            same = torch.equal(converted.get_submodule(name).weight, module.weight)
            assert same == (name not in ("convs.own", "to_without")), name


class NormalizedFilters(nn.Conv2d):
    """Its output does not follow the scale of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, F.normalize(self.weight, dim=1), self.bias)


class Padded(nn.Conv2d):
    """As timm's, with torch's own filters."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (1, 0, 1, 0)))


@pytest.mark.parametrize(
    ("kind", "is_scaled"), [(NormalizedFilters, False), (Padded, True), (nn.ConvTranspose2d, False)]
)
def test_a_class_of_convolution_is_judged_by_what_it_does(kind: Any, is_scaled: bool) -> None:
    torch.manual_seed(0)
    original: Any = trained_like(nn.Sequential(kind(3, 8, 3), nn.BatchNorm2d(8)).double())
    converted: Any = convert(original, "ln")
    report = calibrate(converted, original, images(), eps="auto", filters="auto")
    assert report.rows[0].filters_scaled == is_scaled
    assert torch.equal(converted[0].weight, original[0].weight) != is_scaled
    again = calibrate(converted, original, images())  # what was fitted is what a run of its own gives
    assert again.relative_error == pytest.approx(report.relative_error, rel=1e-6)


def test_what_the_two_networks_share_is_not_scaled() -> None:
    original: Any = small_network()
    converted: Any = convert(original, "ln")
    converted[0].weight = original[0].weight
    before = original[0].weight.detach().clone()
    report = calibrate(converted, original, images(), eps="auto", filters="auto")
    assert [row.filters_scaled for row in report.rows] == [False, True]
    assert torch.equal(original[0].weight, before)


class Clips(nn.Module):
    """Takes apart what it is given: four frames are one clip, so that one image alone is none."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small_network()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).unflatten(0, (-1, 6)).mean(1)


def test_a_network_that_needs_its_batch_whole_gets_it() -> None:
    original = Clips().eval()
    report = calibrate(convert(original, "ln"), original, images(12), eps="auto", filters="auto")
    assert [row.filters_scaled for row in report.rows] == [True, True]


def test_several_inputs_pass_through_forward() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small_network()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.body(a + b)

    original = Sum().eval()
    pairs: Any = [torch.stack([images(), images()])]
    report = calibrate(
        convert(original, "ln"), original, pairs, eps="auto", filters="auto",
        forward=lambda network, batch: network(batch[0], batch[1]),
    )  # fmt: skip
    assert [row.filters_scaled for row in report.rows] == [True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fuse", [False, True])
def test_in_other_types_and_with_fused_norms(dtype: torch.dtype, fuse: bool) -> None:
    torch.manual_seed(0)
    original: Any = trained_like(torchvision.models.resnet18(num_classes=3)).to(dtype)
    batch = images(6, 3, 48, 48, dtype=dtype) + 0.5 * images(6, 3, 1, 1, dtype=dtype)
    converted = convert(original, fuse=fuse, example_inputs=batch[:1])
    report = calibrate(converted, original, batch, groups="auto", eps="auto", filters="auto")
    assert all(row.filters_scaled for row in report.rows)
    kept = calibrate(convert(original), original, batch)
    assert (report.relative_error or 1) < 0.75 * (kept.relative_error or 0)
    with torch.no_grad():
        fresh = converted.eval()(batch).float()
        wanted = original(batch).float()
    error = float((fresh - wanted).norm() / wanted.norm())
    assert error == pytest.approx(report.relative_error, rel=0.3 if dtype == torch.bfloat16 else 1e-3)


class Picked(nn.Module):
    """A norm over some places of a map, which differ between two networks that agree but for rounding."""

    def __init__(self, *, fixed_number: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16)
        self.second, self.picked = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.fixed_number = fixed_number

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        score = torch.sin(1e6 * x.mean(1).flatten(1))
        count = 9 if self.fixed_number else 5 + int(1e3 * score.abs().sum()) % 40
        places = score.topk(count).indices
        taken = x.flatten(2).gather(2, places.unsqueeze(1).expand(-1, 16, -1))
        return self.picked(self.second(taken.unsqueeze(3)))


@pytest.mark.parametrize("fixed_number", [False, True])
@pytest.mark.parametrize("filters", ["keep", "auto"])
def test_maps_of_other_places_turn_no_sign(fixed_number: bool, filters: Any) -> None:
    torch.manual_seed(0)
    original: Any = trained_like(Picked(fixed_number=fixed_number).double())
    converted: Any = convert(original, "ln")
    report = calibrate(converted, original, images(8, 8, 8, 8), eps="auto", filters=filters)
    assert [row.filters_scaled for row in report.rows] == [filters == "auto", filters == "auto" and fixed_number]
    assert (report.rows[1].fit_error is None) == (not fixed_number)
    turned = (converted.second.weight / original.second.weight).sign().flatten(1)[:, 0]
    assert torch.equal(converted.picked.weight.sign() * turned, original.picked.weight.sign())


def test_the_original_and_every_flag_stay_and_a_failure_puts_the_filters_back() -> None:
    original: Any = small_network()
    original.train()
    before = copy.deepcopy(original.state_dict())
    converted: Any = convert(original, num_groups=2)
    generator = torch.get_rng_state()
    calibrate(converted, original, images(), eps="auto", filters="auto")
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())
    assert all(module.training for module in original)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in [*original, *converted])
    assert torch.equal(torch.get_rng_state(), generator)

    fresh: Any = convert(original, num_groups=2)
    fresh[4].register_forward_hook(lambda *_: 1 / 0)
    state = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(ArgumentError, match="ZeroDivisionError"):
        calibrate(fresh, original, images(), eps="auto", filters="auto")
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())


def test_images_that_the_original_cannot_take_are_refused_as_they_were_given() -> None:
    original = small_network()
    with pytest.raises(ArgumentError, match=r"the original cannot run on a batch of \(9, 5, 9, 8\)"):
        calibrate(convert(original), original, images(9, 5, 9, 8), filters="auto")


def test_batches_give_what_one_big_batch_gives_and_a_second_run_the_same_bits() -> None:
    original, batch = small_network(), images()
    networks = [convert(original, num_groups=2) for _ in range(3)]
    forms: list[Any] = [batch, list(batch.split(5)), list(batch.split(5))]
    for network, given in zip(networks, forms, strict=True):
        calibrate(network, original, given, eps="auto", filters="auto")
    whole, parts, again = (affine(network) for network in networks)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    np.testing.assert_array_equal(
        networks[1].state_dict()["0.weight"].numpy(), networks[2].state_dict()["0.weight"].numpy()
    )


def test_epsilons_are_taken_by_name_and_bad_ones_refused() -> None:
    original = small_network()
    converted: Any = convert(original, eps={"4": 0.25})
    assert (converted[1].eps, converted[4].eps) == (1e-5, 0.25)
    single: Any = np.float32(0.25)
    assert repr(convert(original, eps={"4": single}).get_submodule("4").eps) == "0.25"
    wrong: list[tuple[Any, str]] = [
        ({"3": 1.0}, "norm in eps"),
        ({"4": 0.0}, r"eps=0.0 was given for the norm '4'"),
        ({"4": float("nan")}, "positive and finite"),
        ({"4": True}, "positive and finite"),
        ({4: 0.1}, "norm in eps"),
        (1e-3, "'keep' or a mapping"),
    ]
    for eps, message in wrong:
        with pytest.raises(ArgumentError, match=message):
            convert(original, eps=eps)
