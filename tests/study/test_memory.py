from __future__ import annotations

import pytest

from batchfree.cli._tables import print_memory
from batchfree.errors import StudyError
from batchfree.study import measure_memory


def test_memory_by_hand_and_the_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that can be counted: conv (1 to 4 channels, 3x3) - norm - relu - mean - linear on 8x8 images."""
    import torch.nn.functional as F
    from torch import Tensor, nn

    from batchfree.study import _arm

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.linear = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(F.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))

    monkeypatch.setattr(_arm, "build_model", lambda *_, **__: Tiny())
    (need,) = measure_memory("resnet8", image="1x8x8", norms=["bn"], classes=2)
    parameters = 4 * (4 * 9 + 4 + 4 + 4 * 2 + 2)
    assert need.training_bytes == 2 * parameters
    assert need.weights_bytes == parameters + 4 * (4 + 4) + 8  # running mean and variance, and a 64-bit counter
    # input 64, the norm's input 256, relu's output 256, the linear layer's input 4, as float32
    assert need.bytes_per_image == 4 * (64 + 256 + 256 + 4)
    fixed = need.weights_bytes + need.training_bytes + need.kept_bytes
    assert need.largest_batch(fixed + 10 * need.bytes_per_image) == 10
    assert need.largest_batch(fixed + 10 * need.bytes_per_image - 1) == 9
    assert need.largest_batch(1) == 0


def test_arms_of_one_network_differ_in_their_statistics_only() -> None:
    needs = {need.norm: need for need in measure_memory("resnet8", image="1x28x28")}
    assert list(needs) == ["bn", "gn", "gn+ws"]
    for need in needs.values():
        assert need.bytes_per_image == pytest.approx(needs["bn"].bytes_per_image, rel=0.05)
    assert needs["gn+ws"].kept_bytes > needs["gn"].kept_bytes + 0.5 * needs["gn"].weights_bytes  # standardised filters


def test_frozen_batch_norm_has_no_gradients_and_fits_any_norm_batch(capsys: pytest.CaptureFixture[str]) -> None:
    bn, frozen = measure_memory("resnet8", image="1x28x28", norms=["bn", "bn-frozen"])
    affine = 2 * 4 * (16 + 16 + 16 + 32 + 32 + 64 + 64)  # weight and bias of each norm, as float32
    assert bn.training_bytes - frozen.training_bytes == 2 * affine
    assert bn.weights_bytes == frozen.weights_bytes
    print_memory("resnet8", "1x28x28", "64MiB", ["bn", "bn-frozen"], classes=10)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[-1]) for row in rows if row[:1] in (["bn"], ["bn-frozen"])] == [
        ("bn", "large"),
        ("bn-frozen", "any"),
    ]


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ({"model": "resnet9"}, "Did you mean resnet8"),
        ({"model": "resnet8", "image": "28x28"}, "Pass for instance 3x224x224"),
        ({"model": "resnet8", "image": "0x28x28"}, "Pass for instance 3x224x224"),
        ({"model": "resnet8", "norms": ["gm"]}, "Did you mean gn"),
    ],
)
def test_bad_names_and_sizes_are_refused(arguments: dict[str, object], pattern: str) -> None:
    with pytest.raises(StudyError, match=pattern):
        measure_memory(**arguments)  # type: ignore[arg-type]
