"""Fully connected networks as Pellegrini & Biroli 2021 prune them (arXiv:2104.13343): three hidden layers of one width, then the logits.

As in their code, every layer normalises what it reads, so that the first batch norm is of the pixels: BN, linear, ReLU; BN, linear at the
end. Recipe: theirs, plain SGD at a constant 0.1, 1000 images a step, no weight decay; they train for 100 000 steps, whatever the epochs.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ltcompile.core.recipe import Recipe

WIDTHS = {"mlp256": 256, "mlp1024": 1024}
NAMES = tuple(WIDTHS)
HIDDEN = 3
LEAST_SIZE = 4
RECIPE = Recipe(epochs=100, lr=0.1, batch=1000, momentum=0.0, weight_decay=0.0, schedule="constant", flip=False, crop_pixels=0)


def build(name: str, classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Images (N, C, height, width) to logits (N, classes). The layers are hidden1 to hidden3, and output."""
    read, width = in_channels * image_size[0] * image_size[1], WIDTHS[name]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flat=nn.Flatten())
    for place in range(1, HIDDEN + 1):
        layers |= {f"norm{place}": nn.BatchNorm1d(read), f"hidden{place}": nn.Linear(read, width), f"relu{place}": nn.ReLU()}
        read = width
    return nn.Sequential(OrderedDict(layers, norm=nn.BatchNorm1d(read), output=nn.Linear(read, classes)))
