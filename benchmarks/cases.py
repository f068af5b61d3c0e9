"""The named cases: tensors as networks have them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Case", "all_cases"]

Layout = Literal["first", "last"]

#: (channels, side of the map) of the norms in a ResNet-50 at 224 pixels.
RESNET50 = [(64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)]
#: (out, in, kernel side) of the convolutions in a ResNet-50.
RESNET50_FILTERS = [
    (64, 3, 7), (64, 64, 1), (64, 64, 3), (256, 64, 1), (64, 256, 1), (128, 256, 1), (128, 128, 3), (512, 128, 1),
    (512, 256, 1), (128, 512, 1), (256, 512, 1), (256, 256, 3), (1024, 256, 1), (1024, 512, 1), (256, 1024, 1),
    (512, 1024, 1), (512, 512, 3), (2048, 512, 1), (2048, 1024, 1), (512, 2048, 1),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One input. `groups` is 0 for Weight Standardization, whose `shape` is the weight's."""

    family: str
    shape: tuple[int, ...]
    groups: int
    layout: Layout = "first"
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        sizes = "x".join(map(str, self.shape))
        return f"{self.family} {sizes} G={self.groups} channels-{self.layout} {str(self.dtype).removeprefix('torch.')}"

    def tensor(self, seed: int) -> Tensor:
        """Normal values, with a mean that is not zero."""
        generator = torch.Generator().manual_seed(seed)
        values = (torch.randn(self.shape, generator=generator) * 2 + 0.5).to(self.dtype)
        if self.layout == "first":
            return values
        return values.contiguous(memory_format=torch.channels_last if len(self.shape) == 4 else torch.channels_last_3d)

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def all_cases() -> list[Case]:
    """Every case, smallest families last."""
    cases: list[Case] = []
    layouts: tuple[Layout, Layout] = ("first", "last")
    for layout in layouts:
        for batch in (1, 2, 8):
            cases += [Case(f"resnet50 batch {batch}", (batch, c, s, s), 32, layout) for c, s in RESNET50]
        cases += [Case("resnet50 batch 2", (2, c, s, s), 32, layout, torch.bfloat16) for c, s in RESNET50]
        cases.append(Case("detection", (1, 256, 100, 152), 32, layout))
        cases.append(Case("volume", (1, 32, 64, 64, 64), 8, layout))
    for dtype in (torch.float32, torch.bfloat16):
        for per_group in (1, 2, 4):
            cases.append(Case(f"{per_group} channels per group", (1, 64, 64, 64), 64 // per_group, "last", dtype))
    cases.append(Case("one group", (1, 256, 56, 56), 1))
    cases.append(Case("smallest", (1, 32, 2, 2), 8))
    cases += [Case("filters", (o, i, k, k), 0) for o, i, k in RESNET50_FILTERS]
    return cases
