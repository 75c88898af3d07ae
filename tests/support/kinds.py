"""Networks of all kinds: inputs, outputs and ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.graph.inputs import Example
from ltcompile.lower.inputs import Inputs
from ltcompile.pruned import Pruned


class UNet(nn.Module):
    """Sides must be multiples of four. Its first batch norm folds into a convolution without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.top, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.each, self.groups = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.GroupNorm(4, 8)
        self.low, self.join, self.out = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.norm(self.top(x)).relu()
        middle = self.groups(self.each(F.max_pool2d(top, 2))).relu()
        low = F.interpolate(self.low(F.max_pool2d(middle, 2)), scale_factor=2.0)
        joined = F.interpolate(self.join(torch.cat([low, middle], 1)), scale_factor=2.0)
        found: Tensor = self.out(torch.cat([joined, top], 1))
        return found


class TwoInputs(nn.Module):
    """An image and a keyword; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.norm, self.side = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Linear(5, 12)
        self.hidden, self.out = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, image: Tensor, *, side: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(self.norm(self.image(image)).relu().mean((2, 3)) + self.side(side)).relu()
        return {"logits": self.out(hidden), "size": hidden.sum(1)}


class Two(nn.Module):
    """Odd widths, two inputs and two outputs whose names are not in the order of the alphabet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 7, 3, padding=1), nn.Linear(7, 5)

    def forward(self, image: Tensor, extra: Tensor) -> dict[str, Tensor]:
        found = torch.relu(self.conv(image)).mean((2, 3))
        return {"logits": self.linear(found) + extra, "features": found}


class Detector(nn.Module):
    """Two scales and whole numbers, nested."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 3, 2, 1)
        self.boxes, self.classes = nn.Conv2d(12, 4, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        first = self.norm(self.first(x)).relu()
        classes = self.classes(self.second(first).relu())
        return (self.boxes(first), classes), classes.argmax(1)


class Tokens(nn.Module):
    """Whole numbers of any length come in."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.out = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.out(self.inner(self.embed(tokens)).relu())
        return found


def one_d() -> nn.Module:
    body = nn.Sequential(nn.Conv1d(2, 12, 5, padding=2), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 8, 3))
    return nn.Sequential(body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3))


def three_d() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.ConvTranspose3d(8, 2, 2, 2))


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Example]]] = {
    "u-net": (UNet, lambda: torch.rand(2, 3, 8, 8)),
    "two inputs": (TwoInputs, lambda: {"image": torch.rand(2, 3, 8, 8), "side": torch.randn(2, 5)}),
    "detector": (Detector, lambda: (torch.randn(1, 3, 16, 16),)),
    "tokens": (Tokens, lambda: torch.randint(0, 11, (2, 7))),
    "1-D": (one_d, lambda: torch.randn(2, 2, 20)),
    "3-D": (three_d, lambda: torch.rand(1, 1, 4, 4, 4)),
}


def pruned(kind: str, ratio: float = 0.4) -> Pruned:
    torch.manual_seed(0)
    build, example = KINDS[kind][0](), KINDS[kind][1]()
    inputs = Inputs.of(build, example).resized(4)
    args, kwargs = inputs.arguments()
    build.train()(*args, **kwargs)  # so that batch norms have statistics to fold
    dense = build.eval()
    return Pruned.of_cut(dense, lt.plan(dense, example, ratio=ratio), example)
