"""`python -m benchmarks.resnet_step --json FILE`: forward and backward of a whole ResNet-50 at 224 pixels.

In turns: torch's with Batch Norm, with Group Norm and without a norm; ours with Group Norm, which holds activations and
residual sums, and that with Weight Standardization. The gate is that ours has torch's loss and gradients.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from batchfree.torch import GroupNorm, WSConv2d
from benchmarks.allocator import keep_freed_memory
from benchmarks.timing import interleaved

LAYERS = [3, 4, 6, 3]
GROUPS = 32


class FusedBottleneck(Bottleneck):  # type: ignore[misc]  # torchvision is untyped
    """Torchvision's block with each activation, and the sum with the shortcut, inside the norm before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for norm in (self.bn1, self.bn2, self.bn3):  # the shortcut's norm stays without
            norm.activation = "relu"

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.bn3(self.conv3(out), shortcut)
        return result


def torch_network(norm: Callable[[int], nn.Module]) -> nn.Module:
    return ResNet(Bottleneck, LAYERS, norm_layer=norm)


def our_network(*, standardized: bool = False) -> nn.Module:
    network = ResNet(FusedBottleneck, LAYERS, norm_layer=partial(GroupNorm, GROUPS))
    network.bn1.activation = "relu"
    network.relu = nn.Identity()
    if standardized:
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Conv2d:
                    setattr(parent, name, WSConv2d.from_conv(child))
    return network


def networks() -> dict[str, nn.Module]:
    return {
        "torch BN": torch_network(nn.BatchNorm2d),
        "torch GN": torch_network(partial(nn.GroupNorm, GROUPS)),
        "torch without norm": torch_network(lambda _: nn.Identity()),
        "our GN": our_network(),
        "our GN and WS": our_network(standardized=True),
    }


RATIOS = [
    ("our GN", "torch BN"),
    ("our GN", "torch GN"),
    ("our GN and WS", "our GN"),
    ("torch without norm", "torch BN"),
]


def main() -> int:
    """0 where the gate is green, 1 where it is red and nothing was timed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resnet_step", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the rows are written")
    parser.add_argument("--seconds", type=float, default=60, help="per batch size and layout")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--return-memory", action="store_true", help="leave freed memory to the C library's default")
    given = parser.parse_args()
    keeps_freed_memory = not given.return_memory and keep_freed_memory()
    if not is_right():
        print("The gate is red: our network's loss or gradients are not torch's.", file=sys.stderr)
        return 1
    rows = [
        _row(batch, layout, given.seconds) | {"keeps_freed_memory": keeps_freed_memory}
        for layout in (torch.contiguous_format, torch.channels_last)
        for batch in given.batch
    ]
    given.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for row in rows:
        print(f"batch {row['batch']}, {row['layout']}, {row['threads']} threads:")
        print(
            *(f"  {name}: {spread['median'] * 1e3:.0f} ms" for name, spread in row["seconds_per_step"].items()),
            sep="\n",
        )
        print(*(f"  {name}: {ratio:.3f}" for name, ratio in row["ratios"].items()), sep="\n")
    return 0


def is_right() -> bool:
    """Ours against torch's with Group Norm, the same weights, on small images."""
    torch.manual_seed(0)
    expected, ours = torch_network(partial(nn.GroupNorm, GROUPS)).double(), our_network().double()
    ours.load_state_dict(expected.state_dict())
    images, labels = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.tensor([1, 2])
    found = []
    for network in (ours, expected):
        loss = F.cross_entropy(network(images), labels)
        found.append([loss, *torch.autograd.grad(loss, list(network.parameters()))])
    return all(torch.allclose(mine, wanted, rtol=1e-6, atol=1e-8) for mine, wanted in zip(*found, strict=True))


def _row(batch: int, layout: torch.memory_format, seconds: float) -> dict[str, Any]:
    images = torch.randn(batch, 3, 224, 224).to(memory_format=layout)
    labels = torch.arange(batch)

    def step(network: nn.Module) -> Callable[[], object]:
        network.to(memory_format=layout)
        parameters = list(network.parameters())
        return lambda: torch.autograd.grad(F.cross_entropy(network(images), labels), parameters)

    times = interleaved({name: step(network) for name, network in networks().items()}, seconds, calls_per_turn=1)
    return {
        "batch": batch,
        "layout": str(layout).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds_per_step": {name: spread.as_row() for name, spread in times.items()},
        "ratios": {f"{a} / {b}": times[a].median / times[b].median for a, b in RATIOS},
    }


if __name__ == "__main__":
    sys.exit(main())
