"""`lt.plan` runs what it planned: what tracing misses is frozen, with the group to blame, and chance alone blames nothing."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.core.plan import PruningPlan
from ltcompile.errors import InvalidModel, InvalidSetting
from ltcompile.graph import disagreements
from ltcompile.search.job import SearchJob, prepare
from ltcompile.tasks import Classification

IMAGES = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(1))
Code = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Three convolutions with batch norm, and code behind the second whose widths the tracing cannot follow."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code = code
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1), nn.Conv2d(10, 12, 1)
        self.bn, self.drop, self.head = nn.BatchNorm2d(12), nn.Dropout(0.5), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.code(self, F.relu(self.b(F.relu(self.a(x)))))
        out: Tensor = self.head(self.drop(F.relu(self.bn(self.c(x))).mean((2, 3))))
        return out


def width(x: Tensor) -> int:
    """The number of channels by a way that is not followed."""
    return len(x.transpose(0, 1))


MISSED: dict[str, Code] = {
    "a scale in eval mode": lambda net, x: x * width(x) ** 0.5,
    "a scale in training mode alone": lambda net, x: x / width(x) if net.training else x,
    "a branch at small widths": lambda net, x: x if width(x) > 4 else x.sigmoid(),
    "an error at small widths": lambda net, x: x if width(x) > 4 else x[:, 9:],
    "an error at small widths in training": lambda net, x: x[:, 9:] if net.training and width(x) <= 4 else x,
    "noise": lambda net, x: x + width(x) * torch.randn(x.shape[0], 1, 1, 1, dtype=x.dtype),
}


@pytest.mark.parametrize("case", MISSED)
def test_what_tracing_misses_is_frozen_by_a_run_at_the_planned_widths(case: str) -> None:
    torch.manual_seed(0)
    model = Net(MISSED[case])
    unchecked = lt.plan(model, IMAGES, 0.65, "local", check=False)
    assert {name for name in unchecked.widths if unchecked.widths[name][1] < unchecked.widths[name][0]} == {"a", "b", "c"}
    plan = lt.plan(model, IMAGES, 0.65, "local")
    reason = plan.frozen["b"]
    assert ("training mode" if "training" in case else "eval mode" if "eval" in case else "mode") in reason
    assert "does not run" in reason if "error" in case else "differs" in reason
    assert plan.widths["a"] == (8, 3) and plan.widths["c"] == (12, 5), "the others are cut as they were to be"
    assert not disagreements(model, IMAGES, plan)


def missed(in_channels: int, classes: int) -> Net:
    """A factory for a search."""
    net = Net(MISSED["a scale in eval mode"])
    net.a, net.head = nn.Conv2d(in_channels, 8, 3), nn.Linear(12, classes)
    return net


@pytest.mark.slow
def test_a_search_freezes_what_tracing_misses_before_it_trains() -> None:
    job = prepare(
        SearchJob("test_proof:missed", Classification(lt.load_data("digits")), lt.SearchConfig(), lt.Recipe(epochs=2), torch.device("cpu"))
    )
    frozen = {g.name: g.frozen for g in job.groups if g.frozen}
    assert frozen.keys() == {"b", "head"} and "differs" in frozen["b"]


CHANCE: dict[str, Code] = {
    "dropout": lambda net, x: F.dropout2d(x, 0.3, net.training),
    "noise of the features' shape": lambda net, x: x + torch.randn_like(x),
    "noise of a width": lambda net, x: x + torch.rand(x.shape[0], x.shape[1], 1, 1, dtype=x.dtype) * 0.1,
    "stochastic depth": lambda net, x: x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5) if net.training else x,
    "random slopes": lambda net, x: F.rrelu(x - 0.5, training=net.training),
    "python's and numpy's rng": lambda net, x: x * random.random() + float(np.random.rand()),
    "computed in float32": lambda net, x: x.float().softmax(3).to(x.dtype),
}


@pytest.mark.parametrize("case", CHANCE)
def test_chance_and_rounding_blame_nothing(case: str) -> None:
    torch.manual_seed(0)
    model = Net(CHANCE[case])
    assert lt.plan(model, IMAGES, 0.5, "local").frozen.keys() == {"head"}


def test_the_caller_keeps_its_network_and_its_rng() -> None:
    torch.manual_seed(0)
    model = Net(MISSED["a scale in eval mode"]).train()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    rng = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    lt.plan(model, IMAGES, 0.5, "local")
    assert all(torch.equal(state[k], v) and v.dtype == state[k].dtype for k, v in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(rng[0], torch.get_rng_state()) and rng[1] == random.getstate() and (rng[2] == np.random.get_state()[1]).all()


def test_a_wrong_group_is_seen_in_any_layer() -> None:
    """Each group in turn has a batch norm whose channels are shifted by one: the run finds it, and blames it alone."""
    torch.manual_seed(0)
    layers = [layer for i, o in ((3, 4), (4, 6), (6, 8)) for layer in (nn.Conv2d(i, o, 1), nn.BatchNorm2d(o), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Conv2d(8, 4, 1)).eval()
    plan = lt.plan(model, IMAGES, 0.5, "local")
    for wrong in (g for g in plan.groups if not g.frozen):
        members = tuple(replace(m, index=m.index[1:] + m.index[:1]) if m.axis == "each" else m for m in wrong.members)
        groups = tuple(replace(g, members=members) if g is wrong else g for g in plan.groups)
        assert disagreements(model, IMAGES, PruningPlan(groups, plan.kept)).keys() == {wrong.name}


class Residual(nn.Module):
    """A plain branch of two convolutions, whose sum with its input is scaled as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)
        self.gamma, self.norm, self.head = nn.Parameter(torch.ones(6, 1, 1)), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        out: Tensor = self.head(x + self.gamma * self.b(F.relu(self.a(x))))
        return out


@pytest.mark.parametrize("size", [1.0, 1e-2, 3e-5, 1e-9, 1e-200])
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_wrong_group_is_seen_however_small_the_weights(kind: str, size: float) -> None:
    """Biases of the usual size, and a branch next to it, hide nothing. Here each group in turn has inputs shifted by one."""
    torch.manual_seed(0)
    layers = [layer for i, o in ((3, 4), (4, 6), (6, 8)) for layer in (nn.Conv2d(i, o, 1), nn.ReLU())]
    model = (nn.Sequential(*layers, nn.Conv2d(8, 4, 1)) if kind == "plain" else Residual()).eval()
    for name, p in model.double().named_parameters():
        p.data.mul_(1.0 if name.endswith("bias") else size)
    plan = lt.plan(model, IMAGES.double(), 0.5, "local")
    for wrong in (g for g in plan.groups if not g.frozen):
        members = tuple(replace(m, index=m.index[1:] + m.index[:1]) if m.axis == "in" else m for m in wrong.members)
        groups = tuple(replace(g, members=members) if g is wrong else g for g in plan.groups)
        assert disagreements(model, IMAGES.double(), PruningPlan(groups, plan.kept)).keys() == {wrong.name}


def test_nothing_left_to_cut_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Scale(), nn.Conv2d(8, 4, 1))
    with pytest.raises(InvalidModel, match="nothing in this network can be cut: 0: in eval mode, the output of the cut network differs"):
        lt.plan(model, IMAGES)
    torch.manual_seed(0)
    for wanted, reason in (
        ({"ratio": 0.1}, "loses 1 or more"),
        ({"align": 8}, "no smaller multiple"),
        ({"limits": lt.Limits(min_channels=9)}, "keeps at least 4"),
    ):
        with pytest.raises(InvalidSetting, match=reason):
            lt.plan(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), IMAGES, **wanted)  # type: ignore[arg-type]


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * width(x) ** 0.5
