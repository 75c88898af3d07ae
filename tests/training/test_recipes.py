"""Settings of recipes beyond SGD: each does what it says, resumes to the same bits, and is off by default."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from searches import QUICK
from torch import nn

import ltcompile as lt
from ltcompile.core.task import EVERYTHING, Shard
from ltcompile.data._epochs import epoch_rows
from ltcompile.errors import InvalidSetting
from ltcompile.tasks import Classification
from ltcompile.training import Training, train
from ltcompile.training.step import Stepper

CPU = torch.device("cpu")
RECIPE = dataclasses.replace(QUICK, epochs=2, batch=16, lr=0.05)
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "ema": {"ema": 0.8},
    "clip": {"clip_norm": 1.0},
    "mixup": {"mixup": 0.4},
    "lookahead": {"lookahead": 3},
    "triangular": {"schedule": "triangular", "norm_bias_rate": 4.0},
    "frozen": {"frozen": ("stem|1", "bn.*")},
    "late": {"frozen": ("4.bias",), "frozen_after": 1, "flip": True, "alternate_flip": True},
    "all": {"optimizer": "adamw", "lr": 0.01, "ema": 0.8, "clip_norm": 1.0, "mixup": 0.2, "label_smoothing": 0.1},
}


@pytest.fixture(scope="module")
def task() -> Classification:
    return Classification(lt.load_data("digits", image_size=8))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


@pytest.mark.parametrize("name", SETTINGS)
def test_it_learns_and_resumes_to_the_same_bits(task: Classification, name: str) -> None:
    recipe, states = dataclasses.replace(RECIPE, **SETTINGS[name]), list[dict[str, Any]]()
    assert lt.Recipe.from_json(recipe.to_json()) == recipe

    def run(**options: Any) -> tuple[nn.Module, Training]:
        model = network()
        return model, train(model, task, recipe, 0, CPU, **options)

    whole, done = run(progress=lambda epoch, state: states.append(copy.deepcopy(state)))
    again, resumed = run(state=states[0])
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole.state_dict().items())
    assert done.val == resumed.val == task.evaluate(whole, "val", CPU) and done.val.value > 0.3


@pytest.mark.slow
def test_layers_follow_those_of_a_teacher_by_projections_and_resume_to_the_same_bits(task: Classification) -> None:
    """The small network comes nearer to the dense one's features, keeps neither hooks nor projections, and a teacher stays as it is."""
    dense = network()
    train(dense, task, RECIPE, 0, CPU)
    plan, before = lt.plan(dense, task.example, 0.5), copy.deepcopy(dense.state_dict())
    recipe, states = dataclasses.replace(RECIPE, distill_layers=("2", "4"), distill_weight=5.0), list[dict[str, Any]]()
    assert lt.Recipe.from_json(recipe.to_json()) == recipe
    losses = {}

    def run(recipe: lt.Recipe, **options: Any) -> nn.Module:
        small = lt.cut(dense, plan)
        losses[recipe] = [epoch.train_loss for epoch in train(small, task, recipe, 0, CPU, teacher=dense, **options).epochs]
        return small

    whole = run(recipe, progress=lambda epoch, state: states.append(copy.deepcopy(state)))
    again, alone = run(recipe, state=states[0]), run(RECIPE)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole.state_dict().items())
    assert whole.state_dict().keys() == alone.state_dict().keys() and not any(
        m._forward_hooks for m in (*whole.modules(), *dense.modules())
    )
    assert not torch.equal(whole[0].weight, alone[0].weight) and losses[recipe][1] < losses[recipe][0]  # type: ignore[index]
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items() if "running" not in key)
    assert {tuple(value.shape) for value in states[0]["features"].values()} == {(8, whole[0].out_channels)}  # type: ignore[index]


@pytest.mark.parametrize(("layers", "reason"), [(("9",), "no layer '9'"), (("3",), "only channels may differ")])
def test_layers_that_a_teacher_cannot_teach(task: Classification, layers: tuple[str, ...], reason: str) -> None:
    dense = network()
    other = nn.Sequential(nn.Conv2d(1, 8, 5), nn.Identity(), nn.Identity(), nn.Unflatten(2, (4, 1)), nn.Flatten(), nn.Linear(128, 10))
    with pytest.raises(InvalidSetting, match=reason):
        train(other, task, dataclasses.replace(RECIPE, distill_layers=layers), 0, CPU, teacher=dense)


def test_frozen_layers_stay_with_their_statistics(task: Classification) -> None:
    before, model = network(), network()
    train(model, task, dataclasses.replace(RECIPE, epochs=1, frozen=("0", "1")), 0, CPU)
    for name, value in before.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]) == (name[0] in "01"), name
    with pytest.raises(InvalidSetting, match="no parameter to train"):
        train(model, task, dataclasses.replace(RECIPE, frozen=(".*",)), 0, CPU)


def test_late_frozen_parameters_train_until_then(task: Classification) -> None:
    recipe, states = dataclasses.replace(RECIPE, frozen=("1", r"4\.bias"), frozen_after=1, clip_norm=1.0), list[dict[str, Any]]()
    train(network(), task, recipe, 0, CPU, progress=lambda epoch, state: states.append(copy.deepcopy(state["model"])))
    first, second = states
    for name, value in network().state_dict().items():
        assert not torch.equal(value, first[name]), name
        assert torch.equal(first[name], second[name]) == (name[0] == "1" or name == "4.bias"), name


def test_alternating_flips_mirror_each_image_in_every_other_epoch(task: Classification) -> None:
    recipe, count = dataclasses.replace(RECIPE, flip=True, alternate_flip=True), 640

    def mirrored(seed: int, shard: Shard, recipe: lt.Recipe = recipe) -> dict[int, bool]:
        pairs = [(rows, moves.mirrored) for rows, moves in epoch_rows(count, 16, recipe, seed, shard) if moves is not None]
        return {row: bool(flip) for rows, flips in pairs if flips is not None for row, flip in zip(rows.tolist(), flips, strict=True)}

    even, odd = (mirrored(epoch, Shard(epoch=epoch)) for epoch in (2, 3))
    assert len(even) == count and all(even[row] != odd[row] for row in even) and 0.4 < sum(even.values()) / count < 0.6
    assert even == mirrored(9, Shard(epoch=0))
    assert even.items() >= mirrored(2, Shard(1, 2, 3, epoch=2)).items() != set()
    usual = dataclasses.replace(recipe, alternate_flip=False)
    assert mirrored(2, Shard(), recipe) == mirrored(2, Shard(), usual) == mirrored(2, Shard(epoch=2), usual) != even
    assert not mirrored(2, Shard(epoch=2), dataclasses.replace(recipe, flip=False))

    epochs = []

    class Watched(Classification):
        def batches(self, part: Any, *args: Any, shard: Shard = EVERYTHING, **more: Any) -> Any:
            epochs.extend([shard.epoch] if part == "train" else [])
            return super().batches(part, *args, shard=shard, **more)

    train(network(), Watched(task.data), recipe, 0, CPU)
    assert epochs == [0, 1]


def test_the_average_is_the_one_by_hand_and_gradients_are_clipped(task: Classification) -> None:
    recipe = dataclasses.replace(RECIPE, ema=0.75, clip_norm=0.01, momentum=0.0, weight_decay=0.0)
    stepper = Stepper(network(), task, recipe, CPU, None, "")
    batch, rate, average = next(iter(task.batches("train", 64, CPU))), 0.5, None
    for _ in range(3):
        before = torch.cat([p.detach().flatten() for p in stepper.model.parameters()])
        stepper([batch], rate)
        after = torch.cat([p.detach().flatten() for p in stepper.model.parameters()])
        torch.testing.assert_close((after - before).norm(), torch.tensor(rate * 0.01), rtol=1e-3, atol=0)
        average = after if average is None else 0.75 * average + 0.25 * after
    torch.testing.assert_close(torch.cat([p.flatten() for p in stepper.result.parameters()]), average, rtol=1e-4, atol=1e-6)


def test_lookahead_is_the_one_by_hand_and_shifts_have_a_rate_of_their_own(task: Classification) -> None:
    options = ({"lookahead": 2, "norm_bias_rate": 4.0}, {"norm_bias_rate": 4.0}, {})
    recipes = [dataclasses.replace(RECIPE, momentum=0.0, weight_decay=0.0, **each) for each in options]  # type: ignore[arg-type]
    slow, fast, usual = (Stepper(network(), task, recipe, CPU, None, "") for recipe in recipes)
    batch, first = next(iter(task.batches("train", 64, CPU))), network().state_dict()
    for each in (slow, fast, usual):
        each([batch], 0.1, 0.0)
    for name in ("0.weight", "1.weight", "1.bias", "4.bias"):
        moved, expected = (each.model.state_dict()[name] - first[name] for each in (fast, usual))
        torch.testing.assert_close(moved, expected * (4.0 if name == "1.bias" else 1.0))
    slow([batch], 0.1, 0.5)  # the second step joins
    fast([batch], 0.1, 0.5)
    decay = 0.95**5 * 0.5**3
    for name, value in slow.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, decay * first[name] + (1 - decay) * fast.model.state_dict()[name])


def test_the_triangular_schedule() -> None:
    recipe = lt.Recipe(epochs=100, lr=2.0, schedule="triangular")
    assert [recipe.rate_at(e) for e in (0, 11.5, 23, 61.5, 100)] == pytest.approx([0.4, 1.2, 2.0, 1.07, 0.14])


@pytest.mark.parametrize(
    "wrong",
    [
        {"lookahead": -1},
        {"norm_bias_rate": 0.0},
        {"optimizer": "lion"},
        {"ema": 1.0},
        {"clip_norm": -1.0},
        {"mixup": float("inf")},
        {"frozen": ("(",)},
        {"frozen_after": -1},
        {"distill_layers": ("2", "2")},
        {"distill_weight": 0.0},
        {"distill_layers": ("2",), "virtual_ranks": 2},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match=f"{next(iter(wrong))}="):
        lt.Recipe(**wrong)
