"""LeNet-5 (LeCun et al. 1998, with ReLU and max pools) and LeNet 300-100, the networks of the first ticket papers.

Recipe: SGD without weight decay, lr 0.05 at batch 128 with an epoch of warm-up: at 0.08, restarts killed all units of a layer.
"""

from __future__ import annotations

from torch import nn

from ltcompile.core.recipe import Recipe

NAMES = ("lenet5", "lenet300")
LEAST_SIZE = 16
RECIPE = Recipe(epochs=30, lr=0.05, batch=128, weight_decay=0.0, warmup_epochs=1)


def build(name: str, classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Images (N, C, height, width) to logits (N, classes)."""
    if name == "lenet300":
        pixels = in_channels * image_size[0] * image_size[1]
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, classes))
    height, width = (((n - 4) // 2 - 4) // 2 for n in image_size)  # two unpadded 5x5 convolutions, each followed by a 2x2 pool
    return nn.Sequential(
        *(nn.Conv2d(in_channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * height * width, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
    )
