from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from batchfree.convert import calibrate, convert
from batchfree.torch import GroupNorm
from tests.convert.trained import affine, images, trained_like


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.BatchNorm1d(16), nn.BatchNorm1d(8)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(left), self.right(right)


def small(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return trained_like(network)


def labelled(network: nn.Module, batch: Any) -> Any:
    return network(*batch)


#: A network, its images, how it runs on a batch, and whether its outputs are class scores.
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Callable[[nn.Module, Any], Any] | None, bool]] = {
    "audio": (
        lambda: nn.Sequential(nn.Conv1d(2, 16, 5), nn.BatchNorm1d(16)),
        lambda: images(4, 2, 50, dtype=torch.float32),
        None,
        False,
    ),
    "volume": (
        lambda: nn.Sequential(nn.Conv3d(1, 16, 3), nn.BatchNorm3d(16)),
        lambda: images(4, 1, 6, 6, 6, dtype=torch.float32),
        None,
        True,
    ),
    "vectors": (
        lambda: nn.Sequential(nn.Linear(9, 16), nn.BatchNorm1d(16)),
        lambda: images(8, 9, dtype=torch.float32),
        None,
        True,
    ),
    "inputs": (
        TwoInputs,
        lambda: [(images(4, 16, 20, dtype=torch.float32), images(4, 8, 3, dtype=torch.float32))],
        labelled,
        False,
    ),
    "named": (
        TwoInputs,
        lambda: {"left": images(4, 16, 20, dtype=torch.float32), "right": images(4, 8, 3, dtype=torch.float32)},
        None,
        False,
    ),
    "activated": (
        lambda: timm.create_model("efficientnet_lite0", num_classes=5),
        lambda: images(2, 3, 64, 64, dtype=torch.float32),
        None,
        True,
    ),
    "segmentation": (
        lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4
        ),
        lambda: images(2, 3, 64, 64, dtype=torch.float32),
        None,
        True,
    ),
    "video": (
        lambda: torchvision.models.video.mc3_18(num_classes=3),
        lambda: images(2, 3, 4, 32, 32, dtype=torch.float32),
        None,
        True,
    ),
}


def first_output(output: Any) -> Tensor:
    if isinstance(output, dict):
        return output["out"]
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network_comes_nearer_to_its_original(kind: str) -> None:
    build, given, forward, has_scores = KINDS[kind]
    original = small(build())
    converted, copied = convert(original, "ln"), convert(original, "ln")
    report = calibrate(converted, original, given(), forward=forward)
    assert all(row.fit_error is not None and row.fit_error < 1.42 for row in report.rows)
    assert (report.top1_agreement is not None) == has_scores
    assert report.relative_error is not None
    run = forward or (lambda network, batch: network(**batch) if isinstance(batch, dict) else network(batch))
    batch = given()[0] if kind == "inputs" else given()
    with torch.no_grad():
        wanted, ours, theirs = (first_output(run(network, batch)) for network in (original, converted, copied))
    assert (ours - wanted).norm() < (theirs - wanted).norm()


def test_a_detector_is_calibrated_on_lists_of_images() -> None:
    original: Any = small(
        torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    )
    scenes = list(images(2, 3, 64, 48, dtype=torch.float32))
    converted, copied = convert(original, "ln"), convert(original, "ln")
    report = calibrate(converted, original, [scenes], forward=lambda network, batch: network(batch))
    assert all(row.fit_error is not None and not row.note for row in report.rows)
    assert report.top1_agreement is None
    with torch.no_grad():
        batch = original.transform(scenes)[0].tensors
        wanted, ours, theirs = (
            torch.cat([maps.flatten() for maps in network.backbone(batch).values()])  # type: ignore[operator]
            for network in (original, converted, copied)
        )
    assert (ours - wanted).norm() < (theirs - wanted).norm()


class Proposals(nn.Module):
    """A detector's shape: as many boxes as score well enough, a norm over them, and a list of dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.BatchNorm2d(16), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        maps = self.body(x)
        boxes = self.head(maps[maps.amax((1, 2, 3)) > 3.5])
        return [{"boxes": box.mean((1, 2))} for box in boxes]


def test_regions_that_differ_in_number_are_fitted_by_their_moments() -> None:
    original = trained_like(Proposals().double())
    converted: Any = convert(original, num_groups=2)
    boxes: dict[str, Tensor] = {}
    old_head: Any = original.head
    old_head.register_forward_pre_hook(lambda _, given: boxes.update(old=given[0]))
    converted.head.register_forward_pre_hook(lambda _, given: boxes.update(new=given[0]))
    brightness = torch.linspace(0.2, 3, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    report = calibrate(converted, original, images(9, 16, 6, 6) * brightness)
    old, new = boxes["old"], boxes["new"]
    assert 0 < len(old) != len(new) > 0
    assert report.rows[1].fit_error is None
    assert report.relative_error is None
    t = old_head(old).detach()
    z = nn.functional.group_norm(new, 2)
    expected = t.std((0, 2, 3), correction=0) / z.std((0, 2, 3), correction=0)
    torch.testing.assert_close(converted.head.weight.detach().abs(), expected)


def test_fused_sums_and_activations_are_fitted_as_the_plain_layers_are() -> None:
    original = small(torchvision.models.resnet18(num_classes=4)).double()
    batch = images(3, 3, 40, 40)
    plain, fused = (convert(original, "ln", example_inputs=batch, fuse=fuse) for fuse in (False, True))
    assert sum(module.activation is not None for module in fused.modules() if isinstance(module, GroupNorm)) > 8
    wanted, given = calibrate(plain, original, batch), calibrate(fused, original, list(batch.split(1)))
    for a, b in zip(affine(plain), affine(fused), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    errors = [[row.fit_error for row in report.rows] for report in (wanted, given)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)
