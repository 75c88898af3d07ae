"""The law of sparse learning: what a regulariser brought to zero is cut at almost no cost, and the same cut costs much without it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from searches import QUICK
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.core.plan import PruningPlan
from ltcompile.errors import InvalidModel, InvalidPlan, InvalidSetting, UnknownName
from ltcompile.prune import regularisers
from ltcompile.prune.criteria import Channels
from ltcompile.tasks import Classification
from ltcompile.training import train

CPU = torch.device("cpu")
NAMES = regularisers.names()
RECIPE = dataclasses.replace(QUICK, epochs=8, batch=32, lr=0.1, schedule="cosine")
STRENGTHS = {"group_lasso": 0.2, "slimming": 4.0, "growing": 8.0}  # a twentieth of a training, twenty times as strong


@pytest.fixture(scope="module")
def task() -> Classification:
    return Classification(lt.load_data("digits", image_size=8))


def network(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (1, width):
        layers += [nn.Conv2d(channels, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


@torch.no_grad()
def norms(model: nn.Module, plan: PruningPlan, penalised: str = "all") -> tuple[Tensor, Tensor]:
    """Of what is penalised of each dropped channel, and of each that stays."""
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for group, kept in plan:
        if not group.frozen:
            pieces = [piece for piece in Channels(group, model).parameters if penalised == "all" or piece.name[0] in "14"]
            values = torch.cat([piece.values for piece in pieces], 1).norm(dim=1)
            for channel, value in enumerate(values):
                found[channel in kept].append(value)
    return torch.stack(found[False]), torch.stack(found[True])


def test_there_are_some() -> None:
    assert set(NAMES) == set(STRENGTHS)


@pytest.fixture(scope="module")
def plain(task: Classification) -> nn.Module:
    model = network()
    train(model, task, RECIPE, 0, CPU)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_cut_costs_almost_nothing_after_it_and_much_without_it(task: Classification, plain: nn.Module, name: str) -> None:
    kind, drop = regularisers.registry.load(regularisers.__name__, "regulariser", name), {}
    recipe = dataclasses.replace(RECIPE, regulariser=name, regulariser_strength=STRENGTHS[name], regulariser_ratio=0.5)
    assert lt.Recipe.from_json(recipe.to_json()) == recipe
    sparse = network()
    train(sparse, task, recipe, 0, CPU)
    for which, model in (("plain", plain), ("sparse", sparse.eval())):
        plan = lt.plan(model, task.example, 0.5, criterion=kind.CRITERION, group_reduction=kind.REDUCTION)
        dense, small = (task.evaluate(each, "val", CPU).value for each in (model, lt.cut(model, plan)))
        drop[which] = dense - small
        if which == "sparse":
            gone, left = norms(model, plan, kind.VALUES)
            assert dense > 0.8 and float(gone.max()) < 0.05 * float(left.median())
    assert drop["sparse"] < 0.01 and drop["plain"] > 0.1, drop


@pytest.mark.parametrize("name", NAMES)
def test_a_training_resumes_to_the_same_bits(task: Classification, name: str) -> None:
    recipe, states = dataclasses.replace(RECIPE, epochs=3, batch=256, regulariser=name), list[dict[str, Any]]()

    def run(**options: Any) -> nn.Module:
        model = network(8)
        train(model, task, recipe, 0, CPU, **options)
        return model

    whole = run(progress=lambda epoch, state: states.append(copy.deepcopy(state)))
    unpenalised = network(8)
    train(unpenalised, task, dataclasses.replace(recipe, regulariser=""), 0, CPU)
    for state in states[:2]:
        again = run(state=state)
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole.state_dict().items())
    assert any(not torch.equal(value, unpenalised.state_dict()[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_proximal_operator_of_the_penalty(name: str) -> None:
    """prox(w) minimises penalty(v) + |v - w|^2 / 2, so its step equals a small gradient step of the penalty."""
    rate, one, other = 1e-5, network(8), network(8)
    example = torch.zeros(1, 1, 8, 8)
    regulariser = lt.Regulariser(name, one, example, strength=1.0, ratio=0.0)
    lt.Regulariser(name, other, example, strength=1.0, ratio=0.0).step(rate)
    regulariser.penalty().backward()
    assert regulariser.strength_at(0.1) == 0 and regulariser.strength_at(0.4) == pytest.approx(0.5) and float(regulariser.penalty(0.1)) == 0
    scaled = {key for key, p in one.named_parameters() if p.grad is not None}
    assert scaled and all(f"{n}.weight" in scaled for n in ("1", "4"))
    for (key, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        if p.grad is not None and not (name == "slimming" and key.endswith("bias")):
            torch.testing.assert_close(q - p, -rate * p.grad, rtol=0.02, atol=3e-7)


def test_a_plan_says_which_channels_go(task: Classification) -> None:
    model, before = network(8), network(8)
    plan = lt.plan(model, task.example, 0.5)
    for _ in range(4):
        lt.Regulariser("growing", model, plan=plan, strength=1e9).step(1.0)
    gone, left = norms(model, plan)
    assert float(gone.max()) < 1e-6 < float(left.min())
    mask = lt.mask(before, plan)
    torch.testing.assert_close(model(task.example), mask(task.example))


def test_what_cannot_be_penalised_is_an_error(task: Classification) -> None:
    example = torch.zeros(1, 1, 8, 8)
    with pytest.raises(UnknownName, match="group_lasso"):
        lt.Regulariser("lasso", network(8), example)
    with pytest.raises(InvalidSetting, match="example="):
        lt.Regulariser("growing", network(8))
    with pytest.raises(InvalidSetting, match="ratio"):
        lt.Regulariser("growing", network(8), example, ratio=1.0)
    with pytest.raises(InvalidModel, match="scales"):
        lt.Regulariser("slimming", nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)), example)
    with pytest.raises(InvalidPlan, match="plan"):
        lt.Regulariser("growing", nn.Linear(2, 2), plan=lt.plan(network(8), example))
    with pytest.raises(InvalidSetting, match="frozen"):
        lt.Recipe(regulariser="growing", frozen=("0",))
