"""A residual network that trains in a second: the golden searches take it as a user's own `golden_network:build`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A stem, two residual blocks of which the second has a projection, and a linear head."""

    def __init__(self, classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(in_channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a1, self.a1_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a2, self.a2_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b1, self.b1_norm = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.b2, self.b2_norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.project = nn.Conv2d(8, 16, 1, stride=2)
        self.head = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(images)))
        x = F.relu(x + self.a2_norm(self.a2(F.relu(self.a1_norm(self.a1(x))))))
        x = F.relu(self.project(x) + self.b2_norm(self.b2(F.relu(self.b1_norm(self.b1(x))))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def build(classes: int, in_channels: int) -> nn.Module:
    return Residual(classes, in_channels)
