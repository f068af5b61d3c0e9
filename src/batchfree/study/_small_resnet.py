"""The residual networks for small images, built with Batch Norm; `convert` makes every other arm from them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SmallResNet"]

WIDTHS = (16, 32, 64)


class SmallResNet(nn.Module):
    """The residual network for small images of He et al. 2016 (arXiv 1512.03385), section 4.2.

    Three stages of 16, 32 and 64 channels at full, half and quarter resolution; shortcuts without parameters; He
    initialisation, and the last gamma of each block that adds no channels 0, after Wu & He 2018, who train both BN and
    GN so.
    """

    def __init__(self, depth: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        blocks_per_stage = (depth - 2) // 6
        self.conv = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        blocks: list[nn.Module] = []
        channels = WIDTHS[0]
        for width in WIDTHS:
            for index in range(blocks_per_stage):
                stride = 2 if index == 0 and width != WIDTHS[0] else 1
                blocks.append(BasicBlock(channels, width, stride))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (n, num_classes) of images (n, in_channels, height, width)."""
        x = self.blocks(F.relu(self.norm(self.conv(images))))
        return self.classifier(x.mean(dim=(2, 3)))

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                module.zero_init_last()


class BasicBlock(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.added_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, channels, h / stride, w / stride)."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self._shortcut(x))

    def zero_init_last(self) -> None:
        """Makes the last gamma 0, so that the block begins as its shortcut; the method's name is timm's.

        Not where the block adds channels: these have no shortcut, would begin as relu(0), which has no gradient, and
        would stay 0 for ever. Projections, as in larger networks, do not have this trouble.
        """
        if self.added_channels == 0:
            nn.init.zeros_(self.norm2.weight)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.added_channels == 0:
            return x
        # He et al.'s option A: every second pixel, and zeros for the channels that are new.
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added_channels))
