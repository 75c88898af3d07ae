"""What a network's code does with widths and attributes: they shrink with the channels that they count, or the channels stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from networks import shaken
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.core.plan import PruningPlan

COMPUTED = "the network computes with how many there are"
COMPARED = "the network's code compares their number with a fixed one"


@dataclass(frozen=True)
class Settings:
    width: int = 12
    widths: tuple[int, ...] = (3, 12)


class Code(nn.Module):
    """conv (3 -> 12), the code under test, conv (-> 8), linear (-> 4)."""

    def __init__(self, code: Callable[[Code, Tensor], Tensor], reads: int = 12) -> None:
        super().__init__()
        self.code, self.c, self.half = code, 12, 6
        self.a, self.b, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(reads, 8, 1), nn.Linear(8, 4)
        self.e, self.settings = nn.Conv2d(12, 1, 1), Settings()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.b(self.code(self, F.relu(self.a(x))))).mean((2, 3)))
        return out


IMAGES = torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(1))


def equal(model: nn.Module, plan: PruningPlan, x: Tensor = IMAGES) -> None:
    """The law: the cut network computes what the masked one does, in eval and in training mode."""
    for training in (False, True):
        small, masked = lt.cut(model, plan).double().train(training), lt.mask(model, plan).double().train(training)
        torch.testing.assert_close(small(x.double()), masked(x.double()), rtol=1e-9, atol=1e-9)


def plans(model: nn.Module, x: Tensor = IMAGES, ratio: float = 0.5) -> list[PruningPlan]:
    local = lt.plan(model, x, ratio, "local")
    return [local, *(lt.plan(model, x, ratio, criterion="random", seed=seed) for seed in range(3))]


def halves(net: Code, x: Tensor) -> Tensor:
    a, b = x.split((net.half, net.half), 1)
    return torch.cat([a, b.sigmoid(), a], 1)


def gated(h: Tensor, x: Tensor) -> Tensor:
    """A state that is mixed with the features."""
    return x.sigmoid() * h + x


CUT = {
    "one attribute sizes two pieces": (halves, 18),
    "a width is compared with another": (lambda net, x: x * 2 if x.shape[1] == net.a(IMAGES[:1].to(x)).shape[1] else x, 12),
    "an attribute is compared with a width": (lambda net, x: x if x.shape[1] == net.c else x * 2, 12),
    "the size of a torch layer": (lambda net, x: x.flatten(1).view(x.shape[0], net.b.in_channels, 5, 4), 12),
    "an assertion on a layer's size": (lambda net, x: x if x.shape[1] == net.b.in_channels else x[:, :1], 12),
    "zeros of an attribute": (lambda net, x: gated(torch.zeros(x.shape[0], net.c, *x.shape[2:], dtype=x.dtype), x), 12),
    "ones of an attribute": (lambda net, x: gated(x.new_ones((x.shape[0], net.c, 1, 1)), x), 12),
    "a constant of a width": (lambda net, x: gated(torch.full((x.shape[1], 1, 1), 0.3, dtype=x.dtype), x), 12),
    "a size in settings": (lambda net, x: x.flatten(1).view(x.shape[0], net.settings.width, 5, 4), 12),
    "a size in a list of settings": (lambda net, x: x.flatten(1).view(x.shape[0], net.settings.widths[-1], 5, 4), 12),
    "a width divides evenly": (lambda net, x: x if x.shape[1] % 1 == 0 else x[:, :1], 12),
}


@pytest.mark.parametrize("case", CUT)
def test_sizes_shrink_with_the_channels_that_they_count(case: str) -> None:
    model = shaken(Code(*CUT[case]))
    for plan in plans(model):
        assert not plan.is_identity and "a" not in plan.frozen
        equal(model, plan)


class Heads(nn.Module):
    """Scores are scaled by the size of a head, which stays while whole heads go with the width."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.embed, self.qkv, self.out, self.head = 4, nn.Linear(3, 24), nn.Linear(24, 72), nn.Linear(24, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, x.shape[2] // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * (x.shape[2] // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) / math.sqrt(x.shape[2] / self.heads)
        y = x + self.out((scores @ v).transpose(1, 2).flatten(2))
        out: Tensor = self.head(y.mean(1))
        return out


def test_quotients_of_widths_stay_while_both_sides_shrink() -> None:
    model = shaken(Heads())
    plan = lt.plan(model, IMAGES, 0.5, "local")
    small = lt.cut(model, plan)
    assert (small.heads, small.embed.out_features) == (2, 12)
    equal(model, plan)


KEPT = {
    "power": (lambda net, x: x * x.shape[1] ** 0.5, COMPUTED),
    "square root": (lambda net, x: x / math.sqrt(x.shape[1]), COMPUTED),
    "division": (lambda net, x: x * (x.shape[1] / 7), COMPUTED),
    "times a float": (lambda net, x: x * (x.shape[1] * 0.25), COMPUTED),
    "times a tensor": (lambda net, x: x * x.shape[1], COMPUTED),
    "a layer's size": (lambda net, x: x / net.a.out_channels, COMPUTED),
    "a tensor of it": (lambda net, x: x / torch.sqrt(torch.tensor(float(x.shape[1]))), COMPUTED),
    "a scale of a weight": (lambda net, x: x + F.conv2d(x, net.e.weight * (net.e.weight.shape[1] * 9) ** -0.5), COMPUTED),
    "comparison": (lambda net, x: x * 2 if x.shape[1] == 12 else x, COMPARED),
}


@pytest.mark.parametrize("case", KEPT)
def test_widths_that_are_values_stay(case: str) -> None:
    code, reason = KEPT[case]
    model = shaken(Code(code))
    plan = lt.plan(model, IMAGES, 0.5, "local")
    assert plan.frozen["a"] == reason
    equal(model, plan)


class Trains(nn.Module):
    """What runs in training mode alone: a running mean of features, noise of a fixed size, or a head whose output is returned."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.a, self.b, self.deep, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 1), nn.Conv2d(12, 4, 1), nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.a(x))
        deep = self.deep(x)
        if self.training and self.what == "statistics":
            self.seen.mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
        if self.training and self.what == "noise":
            x = x + torch.randn(x.shape[0], 12, 1, 1)
        y: Tensor = self.head(F.relu(self.b(x)).mean((2, 3)))
        return (y, deep) if self.training and self.what == "head" else y + deep.mean()


@pytest.mark.parametrize("what", ["statistics", "noise", "head"])
def test_code_that_runs_in_training_alone_is_followed(what: str) -> None:
    model = shaken(Trains(what))
    small = lt.cut(model, lt.plan(model, IMAGES, 0.5, "local")).train()
    small(IMAGES)
    filters, statistics = {"statistics": (6, 6), "noise": (12, 12), "head": (6, 12)}[what]
    assert (small.a.out_channels, small.seen.numel()) == (filters, statistics)
    assert what != "head" or small.deep.out_channels == 4


def test_plans_compose_where_a_layer_keeps_one_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    first = lt.plan(model, IMAGES, limits=lt.Limits(ratios={"0": 0.75}))
    small = lt.cut(model, first)
    second = lt.plan(small, IMAGES)
    assert first.widths["0"][1] == 1 and not second.is_identity
    torch.testing.assert_close(lt.cut(model, first.then(second))(IMAGES), lt.cut(small, second)(IMAGES))


@pytest.mark.parametrize(
    ("conv", "shape", "layout"), [(nn.Conv2d, (6, 5), torch.channels_last), (nn.Conv3d, (4, 4, 4), torch.channels_last_3d)]
)
def test_the_memory_format_is_kept(conv: type[nn.Conv2d], shape: tuple[int, ...], layout: torch.memory_format) -> None:
    model = nn.Sequential(conv(3, 8, 3), nn.ReLU(), conv(8, 4, 1)).eval().to(memory_format=layout)
    small = lt.cut(model, lt.plan(model, torch.randn(1, 3, *shape)))
    assert small[0].weight.shape[0] == 4 and small[0].weight.is_contiguous(memory_format=layout)
