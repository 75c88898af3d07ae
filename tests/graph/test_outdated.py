"""Attributes that no forward pass reads: those that a cut leaves as they were are listed, and nothing else is."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.core.notice import Notice
from ltcompile.graph.outdated import outdated_attributes

IMAGES = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(1))


class Resettable(nn.Module):
    """Features 3 -> 16 -> 12, a head of 12 -> 4, and a method that builds another head as timm's networks do."""

    def __init__(self, side: int = 1) -> None:
        super().__init__()
        self.num_features, self.seen, self.scale, self.image_size = 12, 12, 12, 12
        self.body, self.features = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(side), nn.Linear(12 * side * side, 4)

    def reset_classifier(self, classes: int) -> None:
        self.head = nn.Linear(self.num_features * self.head.in_features // self.seen, classes)

    def forward_scaled(self, x: Tensor) -> Tensor:
        return x / self.scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(self.body(x).relu()).relu())
        out: Tensor = self.forward_scaled(self.head(x.reshape(len(x), self.seen, -1).flatten(1)))
        return out


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Resettable()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


@pytest.mark.filterwarnings("ignore::ltcompile.core.notice.Notice")
@pytest.mark.parametrize("side", [1, 2])
def test_what_a_method_reads_is_listed_and_what_forward_reads_follows(side: int) -> None:
    model = Resettable(side).eval()
    plan = lt.plan(model, IMAGES, 0.5, "local")
    small = lt.cut(model, plan)
    assert small.seen == small.features.out_channels == 6, "forward reads it"
    assert small.scale == small.image_size == 12, "a number that only equals the width"
    (stale,) = outdated_attributes(small, plan)
    assert (stale.path, stale.name, stale.before, stale.after, stale.head) == ("", "num_features", 12, 6, "head")
    assert stale.methods == ("reset_classifier",)
    small.num_features = stale.after
    assert outdated_attributes(small, plan) == []
    small.reset_classifier(7)
    assert small(IMAGES).shape == (2, 7)


@pytest.mark.filterwarnings("ignore::ltcompile.core.notice.Notice")
def test_it_is_found_in_inner_modules_and_only_where_the_features_were_cut() -> None:
    model = Wrapped().eval()
    plan = lt.plan(model, IMAGES, 0.5, "local")
    assert [(s.path, s.name, s.head) for s in outdated_attributes(lt.cut(model, plan), plan)] == [("net", "num_features", "net.head")]
    spared = lt.plan(model, IMAGES, 0.5, "local", limits=lt.Limits(keep=("net.features",)))
    assert not spared.is_identity and outdated_attributes(lt.cut(model, spared), spared) == []


def test_a_cut_says_so() -> None:
    model = Resettable(3).eval()
    plan = lt.plan(model, IMAGES, 0.25, "local")  # a text of its own: each is given once in a process
    with pytest.warns(Notice, match="num_features is 12 where 9 channels reach 'head' now .read by reset_classifier"):
        lt.cut(model, plan)


def test_a_plain_network_gives_no_notice() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        lt.cut(model, lt.plan(model, IMAGES, 0.5, "local"))
