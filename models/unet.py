"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597) with batch norm, for small images: three resolutions, and maps of the input's own.

(N, C, H, W) -> (N, classes, H, W), for H and W of 4 or more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile.core.recipe import Recipe

WIDTHS = {"unet": 16, "unet-small": 4}
NAMES = tuple(WIDTHS)
LEAST_SIZE = 4
RECIPE = Recipe(epochs=30, batch=16, lr=0.05, weight_decay=1e-4, schedule="cosine", warmup_epochs=1)


def build(name: str, classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return UNet(classes, in_channels, WIDTHS[name])


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    def __init__(self, classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _block(in_channels, width), _block(width, 2 * width), _block(2 * width, 4 * width)
        self.up2, self.up1 = _block(6 * width, 2 * width), _block(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.down1(images)
        middle = self.down2(F.max_pool2d(fine, 2))
        y = self.bottom(F.max_pool2d(middle, 2))
        y = self.up2(torch.cat([F.interpolate(y, middle.shape[-2:]), middle], 1))
        y = self.up1(torch.cat([F.interpolate(y, fine.shape[-2:]), fine], 1))
        maps: Tensor = self.head(y)
        return maps
