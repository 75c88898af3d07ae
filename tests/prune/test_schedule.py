"""Gradual pruning during one training."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.errors import LtcompileError
from ltcompile.prune.schedule import dropped_fraction


def train(model: nn.Module, schedule: lt.Schedule, images: Tensor, steps: range) -> tuple[nn.Module, torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in steps:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        model = schedule(model, optimizer, step)
    return model, optimizer


def test_a_network_shrinks_by_the_cubic_law_while_it_trains(images: Tensor) -> None:
    torch.manual_seed(0)
    model = NETWORKS["conv2"]()
    schedule = lt.Schedule(images, ratio=0.6, first_step=1, last_step=5, cuts=3)
    assert {step: round(value, 4) for step, value in schedule.due.items()} == {1: 0.4222, 3: 0.5778, 5: 0.6}
    small, optimizer = train(model, schedule, images, range(7))
    assert schedule.plan is not None
    total = sum(g.width for g in schedule.plan.groups if not g.frozen)
    assert abs(dropped_fraction(schedule.plan) - 0.6) <= 2 / total
    fresh = lt.cut(NETWORKS["conv2"](), schedule.plan)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in small.parameters()]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}


def test_a_resumed_schedule_repeats_no_cut(images: Tensor) -> None:
    torch.manual_seed(0)
    first = lt.Schedule(images, 0.6, 1, 5, 3)
    model, _ = train(NETWORKS["conv2"](), first, images, range(4))
    assert first.plan is not None
    again = lt.Schedule(images, 0.6, 1, 5, 3, plan=first.plan)
    assert again(model, None, 3) is model
    small = again(model, None, 5)
    assert again.plan is not None and again.plan != first.plan
    assert abs(dropped_fraction(again.plan) - 0.6) <= 2 / sum(g.width for g in again.plan.groups if not g.frozen)
    assert [p.shape for p in small.parameters()] == [p.shape for p in lt.cut(NETWORKS["conv2"](), again.plan).parameters()]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ratio": 1.0}, "ratio: 1.0"),
        ({"ratio": "half"}, "ratio: 'half'"),
        ({"cuts": 6}, "cuts: 6"),
        ({"first_step": 9}, "first_step 9"),
        ({"criterion": "taylor"}, "taylor needs gradients"),
        ({"criterion": "none"}, "none"),
        ({"scope": "some"}, "scope: 'some'"),
    ],
)
def test_settings_are_checked_before_the_training(settings: dict[str, object], says: str, images: Tensor) -> None:
    with pytest.raises(LtcompileError, match=says):
        lt.Schedule(**{"example": images, "ratio": 0.5, "first_step": 1, "last_step": 5, "cuts": 3} | settings)  # type: ignore[arg-type]
