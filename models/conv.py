"""Conv-2/4/6 (Frankle & Carbin 2018): pairs of 3x3 convolutions with a pool behind each, then 256-256-classes; no batch norm.

Recipe: the paper trains them with Adam; SGD with lr 0.05 at batch 128 is this project's.
"""

from __future__ import annotations

from torch import nn

from ltcompile.core.recipe import Recipe

PAIRS = {"conv2": [64], "conv4": [64, 128], "conv6": [64, 128, 256]}
NAMES = tuple(PAIRS)
LEAST_SIZE = 8
RECIPE = Recipe(epochs=40, lr=0.05, batch=128, weight_decay=1e-4, warmup_epochs=2)


def build(name: str, classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Images (N, C, image_size, image_size) to logits (N, classes)."""
    layers: list[nn.Module] = []
    for width in PAIRS[name]:
        layers += [
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        in_channels, image_size = width, image_size // 2
    head = [nn.Linear(in_channels * image_size**2, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes)]
    return nn.Sequential(*layers, nn.Flatten(), *head)
