"""A network without shortcuts for small images, built with Batch Norm; `convert` makes every other arm from it."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["SmallVGG"]

#: Channels of the convolutions between one pooling and the next: a quarter of VGG-16's.
STAGES = ((16, 16), (32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 128))


class SmallVGG(nn.Module):
    """VGG-16 (Simonyan & Zisserman 2015, arXiv 1409.1556, Table 1, column D) at a quarter of its width.

    Its 13 convolutions, each followed by Batch Norm (hence without a bias) and ReLU, and its five poolings, which round
    up so that images of 28x28, and even 8x8, last to the end. One linear layer on the mean over what is left of the map
    takes the place of the three fully connected ones. He initialisation.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for widths in STAGES:
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (n, num_classes) of images (n, in_channels, height, width)."""
        return self.classifier(self.features(images).mean(dim=(2, 3)))
