"""The CIFAR-10 network of airbench94 (Jordan 2024, arXiv:2404.00498): 94 % after ten epochs with its recipe and averaging over crops.

    2x2 whitening of patches (frozen, + bias) -> GELU -> [conv 3x3, pool, norm, GELU, conv 3x3, norm, GELU] x (64, 256, 256) -> max -> linear / 9

The whitening is computed from the first batch that the network is trained on, which is part of its state. Convolutions begin as the identity
on their first channels, and norms have shifts but no scales. Recipe: the paper's, for the mean loss of a batch instead of its sum.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile.core.recipe import Recipe

NAMES = ("airbench",)
WIDTHS = (64, 256, 256)
PATCH = 2
LEAST_SIZE = 9
RECIPE = Recipe(
    epochs=10,
    batch=1024,
    lr=1.5,
    momentum=0.85,
    weight_decay=1.33e-3,
    schedule="triangular",
    label_smoothing=0.2,
    crop_pixels=2,
    norm_bias_rate=64.0,
    lookahead=5,
    alternate_flip=True,
    frozen=(r"whitening\.bias",),
    frozen_after=3,
)


class Whitening(nn.Conv2d):
    """Patches in the coordinates in which they have unit variance, with both signs."""

    whitened: Tensor

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels, 2 * in_channels * PATCH**2, PATCH)
        self.weight.requires_grad_(False)
        self.register_buffer("whitened", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and not self.whitened:
            self.whiten(x)
        return super().forward(x)

    @torch.no_grad()
    def whiten(self, images: Tensor, least: float = 5e-4) -> None:
        """Set the weights from the patches of images; of a network that was cut, as many as it has."""
        patches = F.unfold(images.double(), PATCH).movedim(1, -1).flatten(0, 1)
        variances, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        found = (vectors / (variances + least).sqrt()).T.flip(0).unflatten(1, (-1, PATCH, PATCH))
        self.weight.copy_(torch.cat([found, -found])[: len(self.weight)])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(self.weight, 0)
        self.whitened.fill_(1)


def _convolution(width_in: int, width: int) -> nn.Conv2d:
    layer = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:width_in])
    return layer


def _norm(width: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(width, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


class Airbench(nn.Module):
    """Images (N, C, H, W) to logits (N, classes)."""

    def __init__(self, classes: int, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.whitening = Whitening(in_channels)
        layers: list[nn.Module] = [nn.GELU()]
        width_in = self.whitening.out_channels
        for width in WIDTHS:
            layers += [_convolution(width_in, width), nn.MaxPool2d(2), _norm(width), nn.GELU()]
            layers += [_convolution(width, width), _norm(width), nn.GELU()]
            width_in = width
        self.features = nn.Sequential(*layers)
        height, width = ((n - PATCH + 1) // 2 ** len(WIDTHS) for n in image_size)
        self.pool = nn.MaxPool2d((height, width))
        self.classifier = nn.Linear(width_in, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.features(self.whitening(x))).flatten(1))
        return logits / 9


class MultiCrop(nn.Module):
    """The mean of a network's logits over images, mirrored ones and both of them shifted by a pixel: airbench's averaging when it is tested."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1), "reflect")
        shifted = [padded[:, :, at : at + height, at : at + width] for at in (0, 2)]
        weights = (0.5, 0.25, 0.25)
        total = sum(w * (self.network(v) + self.network(v.flip(3))) for w, v in zip(weights, [x, *shifted], strict=True))
        assert isinstance(total, Tensor)
        return total / 2


def build(name: str, classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return Airbench(classes, in_channels, image_size)
