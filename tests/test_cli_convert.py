"""`batchfree inspect` and `batchfree convert`, and loading what they wrote as docs/trained.md says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from batchfree.cli import app
from batchfree.cli._image_batch import evenly
from batchfree.convert import convert
from batchfree.errors import BatchfreeError

NETWORK = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )

def number():
    return 3
"""


def trained() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    ).eval()
    norm: Any = network[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network's file, its weights in three forms, and images."""
    (tmp_path / "networks.py").write_text(NETWORK)
    state = trained().state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pt")
    (tmp_path / "images" / "deep").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(12):
        pixels = (generator.random((20, 24, 3)) * 255 * (index + 1) / 12).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / ("deep" if index % 2 else "") / f"{index}.png")
    return tmp_path


def batchfree_command(*words: object) -> str:
    """What it prints; an error as `batchfree` would raise it."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def arguments(folder: Path, **changes: object) -> list[object]:
    options: dict[str, object] = {
        "weights": folder / "weights.safetensors",
        "images": folder / "images",
        "to": "gn",
        "size": 16,
        "out": folder / "out.safetensors",
    } | changes
    return [f"{folder}/networks.py:small", *(word for key, value in options.items() for word in (f"--{key}", value))]


def rebuilt(original: nn.Module, path: Path) -> nn.Module:
    """As docs/trained.md loads it."""
    with safe_open(path, "pt") as file:
        options = json.loads(file.metadata()["batchfree"])
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    example = torch.zeros(1, *options["input"])
    network = convert(original, groups=options["groups"], eps=options["eps"], ws=options["ws"], example_inputs=example)
    network.load_state_dict(state)
    return network.eval()


def batch_of(folder: Path, size: int = 16) -> Tensor:
    """The images as ImageNet's networks take them; they are larger than `size`, so the middle is cut."""
    from batchfree.images import read_image

    files = sorted((folder / "images").rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(read_image(file, size).copy()) for file in files]).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean.reshape(1, 3, 1, 1)) / std.reshape(1, 3, 1, 1)


@pytest.mark.parametrize("to", ["gn", "ln", "gn+ws"])
@pytest.mark.parametrize("weights", ["weights.safetensors", "w.pt"])
def test_what_is_written_is_built_again_and_agrees_as_printed(folder: Path, to: str, weights: str) -> None:
    shown = batchfree_command("convert", *arguments(folder, to=to, weights=folder / weights, recover=5))
    original, batch = trained(), batch_of(folder)
    network = rebuilt(original, folder / "out.safetensors")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        distance = (network(batch) - original(batch)).norm() / original(batch).norm()
        copied = (convert(original)(batch) - original(batch)).norm() / original(batch).norm()
    assert distance < 0.5 * copied
    assert "top-1 agreement" in shown
    assert "kept the state of step" in shown


def test_the_printed_agreement_is_that_of_the_written_network(folder: Path) -> None:
    shown = batchfree_command("convert", *arguments(folder))
    original, batch = trained(), batch_of(folder)
    network = rebuilt(original, folder / "out.safetensors")
    with torch.no_grad():
        distance = (network(batch) - original(batch)).norm() / original(batch).norm()
    found = re.search(r"relative error of the outputs: ([\d.]+)", shown)
    assert found is not None
    assert float(found[1]) == pytest.approx(float(distance), abs=6e-4)
    assert list(folder.glob(".*")) == []  # no temporary file is left
    assert f"{len(batch)} images, 3x16x16, standardised with --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225" in shown
    with safe_open(folder / "out.safetensors", "pt") as file:
        assert json.loads(file.metadata()["batchfree"])["mean"] == [0.485, 0.456, 0.406]


def test_a_file_with_a_modules_name_does_not_stand_for_that_module(folder: Path) -> None:
    before = sys.modules["types"]
    (folder / "types.py").write_text(NETWORK)
    batchfree_command("inspect", f"{folder}/types.py:small")
    assert sys.modules["types"] is before


@pytest.mark.parametrize(("count", "wanted"), [(10, 4), (127, 64), (3, 64), (64, 64)])
def test_images_are_taken_evenly_and_never_more_than_wanted(count: int, wanted: int) -> None:
    chosen = evenly(count, wanted)
    assert len(chosen) == min(count, wanted)
    steps = [b - a for a, b in zip(chosen, [*chosen[1:], count], strict=True)]
    assert chosen[0] == 0
    assert max(steps) - min(steps) <= 1


def test_inspect_prints_the_plan(folder: Path) -> None:
    shown = batchfree_command("inspect", f"{folder}/networks.py:small", "--input", "3x16x16")
    assert "16" in shown
    assert re.search(r"^1\b", shown, re.MULTILINE)
    shown = batchfree_command("inspect", "torchvision:resnet18", "--classes", "5", "--to", "gn+ws")
    assert "layer4.1.bn2" in shown


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "bn"}, "unknown target 'bn'"),
        ({"weights": "gone.pt"}, "not there"),
        ({"weights": "networks.py"}, "weights alone"),
        ({"weights": "evil.pt"}, "can run code"),
        ({"weights": "other.safetensors"}, "1.weight is missing"),
        ({"images": "gone"}, "not a folder"),
        ({"images": "empty"}, "no image"),
        ({"images": "broken"}, "cannot be read as an image"),
        ({"out": "gone/out.safetensors"}, "folder that is there"),
        ({"out": "out.pt"}, "ends in .safetensors"),
        ({"mean": "0.5,x"}, "--mean 0.5,x"),
        ({"mean": "0.5"}, "Both must have"),
        ({"recover": -1}, "--recover -1"),
        ({"size": 2}, "could not be run on the example"),
    ],
    ids=lambda value: "-".join(f"{key}-{item}" for key, item in value.items()) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_and_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "a.png").write_bytes(b"no image")
    torch.save({"state_dict": Evil()}, folder / "evil.pt")
    save_file({"0.weight": torch.zeros(1)}, folder / "other.safetensors")
    with pytest.raises(BatchfreeError, match=message):
        batchfree_command("convert", *arguments(folder, **changes))
    assert not list(folder.rglob("out.*"))
    assert not (folder / "unpickled").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("torchvision:resnt18", "Did you mean torchvision:resnet18"),
        ("timm:resnet18x", "Did you mean timm:resnet18"),
        ("resnet18", "Did you mean torchvision:resnet18"),
        ("gone.py:small", "not there"),
        ("networks.py:tiny", "It has: small"),
        ("networks.py:number", "a int"),
    ],
)
def test_unknown_networks_are_refused_with_what_was_meant(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(BatchfreeError, match=message):
        batchfree_command("inspect", model)
