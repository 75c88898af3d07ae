"""Conv-2/4/6 (Frankle & Carbin 2018): pairs of 3x3 convolutions with a pool behind each, then 256-256-classes; no batch norm.
First weights are Gaussian Glorot's, as theirs: from PyTorch's, sparse ones learn nothing for long.

Their "-dropout" variants drop half of the units behind each hidden linear layer. The paper says at which rate, not where.

Recipe: the paper trains them with Adam; SGD with lr 0.05 at batch 128 is this project's.
"""

from __future__ import annotations

from torch import nn

from ltcompile.core.recipe import Recipe

PAIRS = {"conv2": [64], "conv4": [64, 128], "conv6": [64, 128, 256]}
DROPOUT = 0.5
NAMES = (*PAIRS, *(f"{name}-dropout" for name in PAIRS))
LEAST_SIZE = 8
RECIPE = Recipe(epochs=40, lr=0.05, batch=128, weight_decay=1e-4, warmup_epochs=2)


def build(name: str, classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Images (N, C, height, width) to logits (N, classes)."""
    layers: list[nn.Module] = []
    plain, _, dropped = name.partition("-")
    for width in PAIRS[plain]:
        layers += [
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        in_channels = width
    layers.append(nn.Flatten())
    rows, columns = (n >> len(PAIRS[plain]) for n in image_size)  # halved by every pool
    for features in (in_channels * rows * columns, 256):
        layers += [nn.Linear(features, 256), nn.ReLU(), *([nn.Dropout(DROPOUT)] if dropped else [])]
    network = nn.Sequential(*layers, nn.Linear(256, classes))
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_normal_(parameter)
        else:
            nn.init.zeros_(parameter)
    return network
