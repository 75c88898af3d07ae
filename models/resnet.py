"""ResNet for 32x32 images (He et al. 2015): the CIFAR family 20/56 (6n+2, 16-32-64 filters) and ResNet-18 with a 3x3 stem.

Shortcuts that change shape are 1x1 convolutions. Recipe: lr 0.1 at batch 128, as in the paper's CIFAR section.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile.core.recipe import Recipe

STAGES = {"resnet20": (16, [3, 3, 3]), "resnet56": (16, [9, 9, 9]), "resnet18": (64, [2, 2, 2, 2])}
NAMES = tuple(STAGES)
LEAST_SIZE = 8
RECIPE = Recipe(epochs=182, lr=0.1, batch=128, weight_decay=2e-4)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, added."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Images (N, C, H, W) to logits (N, classes)."""

    def __init__(self, width: int, blocks: list[int], classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        layers: list[nn.Module] = []
        width_in = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                layers.append(Block(width_in, width << stage, 2 if stage and not block else 1))
                width_in = width << stage
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def build(name: str, classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    width, blocks = STAGES[name]
    return ResNet(width, blocks, classes, in_channels)
