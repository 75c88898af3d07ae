"""VGG with batch norm for 32x32 images: 3x3 convolutions, five 2x2 pools, one linear layer.

VGG-16 has 14.7 M parameters and 313 M MACs at 3x32x32; `vgg16-half` and `vgg16-quarter`, with a half and a quarter of each layer's filters, a
fourth and a sixteenth of them, for experiments on a CPU. Smaller images have fewer pools. Recipe: lr 0.1 at batch 128 and 160 epochs as in open_lth
(Frankle et al.), with weight decay 5e-4.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ltcompile.core.recipe import Recipe

WIDTHS: dict[str, list[int | str]] = {  # "M" is a 2x2 max pool
    "vgg11": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg13": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg16": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
    "vgg19": [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M"],
}
DIVISORS = {"vgg16-half": 2, "vgg16-quarter": 4}  # of the numbers of filters
NAMES = (*WIDTHS, *DIVISORS)
LEAST_SIZE = 16
RECIPE = Recipe(epochs=160, lr=0.1, batch=128, weight_decay=5e-4)


class VGG(nn.Module):
    """Images (N, C, H, W) to logits (N, classes); H and W are halved at every pool, and the rest is averaged."""

    def __init__(self, widths: list[int | str], classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            in_channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits


def build(name: str, classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Images (N, C, height, width) to logits (N, classes)."""
    divisor, pools = DIVISORS.get(name, 1), int(math.log2(min(image_size)))  # so many halvings leave one pixel
    widths: list[int | str] = []
    for width in WIDTHS[name.partition("-")[0]]:
        if not isinstance(width, str):
            widths.append(width // divisor)
        elif widths.count("M") < pools:
            widths.append(width)
    return VGG(widths, classes, in_channels)
