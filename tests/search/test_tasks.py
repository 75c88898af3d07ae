"""The seam: a task with a metric and a trainer of its own goes through the whole search, with its verdict in the metric's units."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from searches import QUICK
from torch import nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained
from ltcompile.core.streams import generator
from ltcompile.core.task import Batch, Loss, Metric, Part, Score, Task, Teacher
from ltcompile.data import Dataset
from ltcompile.errors import InvalidSetting, TicketMismatch
from ltcompile.search import Margins, conditions_met
from ltcompile.search.verdict import choose_level, judge, typical_seed
from ltcompile.tasks import Classification
from ltcompile.training import ArmTraining, Epoch, Outcome, Progress, predictions

ERROR = Metric("error", "units", 1.0, higher_is_better=False)
CPU = torch.device("cpu")


class Brightness(Task):
    """How bright the halves of an image are: two numbers, and the mean squared error as the metric."""

    metric = ERROR

    def __init__(self, data: Dataset) -> None:
        self.data = Classification(data)
        self.description = dataclasses.replace(data.description, name="brightness", class_names=("left", "right"), task="brightness")
        self.example = data.example

    @property
    def sizes(self) -> Mapping[Part, int]:
        return self.data.sizes

    def batches(self, part: Part, size: int, device: torch.device, recipe: Recipe | None = None, seed: int = 0) -> Iterator[Batch]:
        for images, _ in self.data.batches(part, size, device, recipe, seed):
            yield images, torch.stack([half.mean((1, 2, 3)) for half in images.chunk(2, 3)], 1)

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe | None = None, teacher: Teacher | None = None) -> Loss:
        return Loss(F.mse_loss(model(batch[0]), batch[1]))

    def evaluate(self, model: nn.Module, part: Part, device: torch.device) -> Score:
        pairs = predictions(model, self.batches(part, 256, device))
        errors = torch.cat([F.mse_loss(outputs, targets, reduction="none").mean(1) for outputs, targets in pairs])
        return Score(errors.mean().item(), errors.mean().item())


class Adam:
    """A user's loop, which knows nothing of the search but `training` and `save`."""

    def __init__(self, stop_at: str = "") -> None:
        self.stop_at, self.trained = stop_at, 0

    def __call__(self, model: nn.Module, task: Any, training: ArmTraining, state: dict[str, Any] | None, save: Progress) -> Outcome:
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        rows = []
        if state is not None:
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            rows = [Epoch.from_json(row) for row in state["epochs"]]
        for epoch in range(len(rows), training.recipe.epochs):
            model.train()
            batches = [*task.batches("train", 128, CPU)]
            order = torch.randperm(len(batches), generator=generator(training.arm.stream("training") + epoch))
            for images, target in (batches[at] for at in order.tolist()):
                optimiser.zero_grad()
                F.mse_loss(model(images), target).backward()
                optimiser.step()
            score = task.evaluate(model, "val", training.device)
            rows.append(Epoch(epoch, 0.01, score.loss, 0.0, score.loss, score.value, 1.0, 1.0))
            reached = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epochs": [row.to_json() for row in rows]}
            save(rows[-1], reached)
            if training.arm.name == self.stop_at and epoch == 0:
                raise KeyboardInterrupt
        self.trained += 1
        return Outcome(rows, score)


@pytest.fixture(scope="module")
def task() -> Brightness:
    return Brightness(lt.load_data("digits", image_size=8))


CONFIG = lt.SearchConfig(rounds=2, rate=0.3, margin_points=0.5)
RECIPE = dataclasses.replace(QUICK, epochs=2)


def test_any_task_goes_through_the_search_and_resumes(tmp_path: Path, task: Brightness) -> None:
    def find(folder: str, trainer: Adam, **options: Any) -> lt.SearchResult:
        return lt.find("lenet300", task, CONFIG, recipe=RECIPE, folder=tmp_path / folder, device="cpu", trainer=trainer, **options)

    loop = Adam()
    whole = find("whole", loop)
    assert loop.trained == 5 == len(whole.rows)
    with pytest.raises(KeyboardInterrupt):
        find("cut", Adam(stop_at="ticket-1"))
    again = Adam()
    resumed = find("cut", again, resume=True)
    assert again.trained == 4, "the dense network is read from its file"
    assert all(torch.equal(value, resumed.ticket.weights[name]) for name, value in whole.ticket.weights.items())
    words = " ".join([whole.verdict.rule, *whole.verdict.summary])
    assert "units of validation error" in words and "points" not in words and "accuracy" not in words
    row = whole.ticket.row
    assert row.test_score is not None and row.val_score < 1 and row.val_correct == "", "the metric's own value"
    assert json.loads((tmp_path / "whole/search.json").read_text())["data"]["name"] == "brightness"


@pytest.mark.parametrize("criterion", ["taylor", "hessian", "activation"])
def test_the_default_trainer_and_the_criteria_take_any_task(tmp_path: Path, task: Brightness, criterion: str) -> None:
    config = dataclasses.replace(CONFIG, criterion=criterion, rounds=1, controls=False)
    found = lt.find("lenet300", task, config, recipe=RECIPE, folder=tmp_path, device="cpu")
    dense, ticket = found.rows
    assert ticket.filters < dense.filters and 0 < dense.val_score == dense.val_loss and dense.train_accuracy == 0
    saved = torch.load(tmp_path / "seed0/dense-0.pt", weights_only=True)["epochs"]
    assert saved[-1]["train_loss"] < saved[0]["train_loss"]


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path, task: Brightness) -> None:
    config, recipe = dataclasses.replace(CONFIG, rounds=1, controls=False), dataclasses.replace(RECIPE, epochs=1, batch=256)
    found, split = lt.load_data("digits", image_size=8), lt.load_data("digits", image_size=8).train
    lt.find("lenet300", found, config, recipe=recipe, folder=tmp_path, device="cpu")
    other = dataclasses.replace(found, train=split.relabelled(split.labels.flip(0)))
    with pytest.raises(TicketMismatch, match="fingerprint"):
        lt.find("lenet300", other, config, recipe=recipe, folder=tmp_path, device="cpu", resume=True)


def test_the_default_trainer_needs_all_parts(tmp_path: Path, task: Brightness) -> None:
    class Blind(Brightness):
        @property
        def sizes(self) -> Mapping[Part, int]:
            return {}

    with pytest.raises(InvalidSetting, match="trainer="):
        lt.find("lenet300", Blind(task.data.data), CONFIG, recipe=RECIPE, folder=tmp_path, device="cpu")


def row(seed: int, arm: str, level: int, value: float) -> Trained:
    return Trained(seed, arm, level, 10, 1000, 100 // 2**level, 5, 1.0, 0.1, 0.0, value, value, "", 4)  # type: ignore[arg-type]


def rows(dense: list[float], *tickets: list[float], **controls: list[float]) -> list[Trained]:
    found = [row(seed, "dense", 0, value) for seed, value in enumerate(dense)]
    found += [row(seed, "ticket", level, value) for level, values in enumerate(tickets, 1) for seed, value in enumerate(values)]
    return found + [row(seed, arm, 1, value) for arm, values in controls.items() for seed, value in enumerate(values)]


def test_where_lower_is_better_the_verdict_turns() -> None:
    """A level whose error is clearly lower wins, one whose error is higher by more than the margin does not."""
    searched = rows([1.0, 1.1, 0.9], [0.8, 0.9, 0.7], [2.0, 2.1, 1.9], random=[1.5, 1.6, 1.4])
    level, differences = choose_level(searched, 0.5, 0.95, ERROR)
    assert level == 1 and differences[1]["mean"] == pytest.approx(0.2) and differences[2]["mean"] == pytest.approx(-1.0)
    verdict = judge(searched, 0.5, 0.95, "lr", ERROR)
    assert verdict.won and verdict.gaps["random"]["mean"] == pytest.approx(0.7) and "It beats" in " ".join(verdict.summary)
    met = conditions_met(searched, 1, Margins(0.5, 0.5), metric=ERROR)
    assert met.flags["3"] and met.flags["4"]


def test_turning_the_metric_turns_nothing_else() -> None:
    """An error e judged where lower is better is an accuracy -e judged where higher is."""
    rng = np.random.default_rng(0)
    values = rng.normal(1, 0.1, (3, 4)).tolist()
    mirrored = [[-v for v in each] for each in values]
    higher = dataclasses.replace(ERROR, higher_is_better=True)
    one, other = judge(rows(*values), 0.2, 0.95, "lr", ERROR), judge(rows(*mirrored), 0.2, 0.95, "lr", higher)
    assert one.level == other.level and one.differences == other.differences
    assert typical_seed(rows(*values)[4:8], ERROR) == typical_seed(rows(*mirrored)[4:8], higher)


def test_few_seeds_of_a_metric_without_items_claim_nothing() -> None:
    verdict = judge(rows([1.0], [1.1], [3.0]), 0.5, 0.95, "lr", ERROR)
    assert verdict.level == 1 and not verdict.decided and "claims no confidence" in verdict.rule
