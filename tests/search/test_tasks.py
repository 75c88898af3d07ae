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
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile import tasks
from ltcompile.core.arm import Arm
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained
from ltcompile.core.streams import generator
from ltcompile.core.task import Metric, Part, Score
from ltcompile.data import Dataset
from ltcompile.errors import InvalidSetting
from ltcompile.search import Margins, conditions_met
from ltcompile.search.verdict import choose_level, judge, typical_seed
from ltcompile.training import ArmTraining, Epoch, Execution, Outcome, Progress

ERROR = Metric("error", "units", 1.0, higher_is_better=False)
CPU = torch.device("cpu")


class Brightness:
    """How bright the halves of an image are: two numbers, and the mean squared error as the metric."""

    metric = ERROR

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.description = dataclasses.replace(data.description, name="brightness", class_names=("left", "right"))
        self.example = data.example

    @property
    def splits(self) -> Mapping[Part, Any]:
        return {"train": self.data.train, "val": self.data.val, "test": self.data.test}

    def adapt(self, recipe: Recipe) -> Recipe:
        return recipe

    def batches(self, part: Part, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, _ in self.splits[part].batches(size, CPU, None, 0):
            yield images, torch.stack([half.mean((1, 2, 3)) for half in images.chunk(2, 3)], 1)

    def evaluate(self, model: nn.Module, part: Part, device: torch.device) -> Score:
        model.eval()
        with torch.no_grad():
            errors = torch.cat([F.mse_loss(model(images), target, reduction="none").mean(1) for images, target in self.batches(part, 256)])
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
            batches = [*task.batches("train", 128)]
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
    assert row.test_accuracy is not None and row.val_accuracy < 1 and row.val_correct == "", "the metric's own value"
    assert json.loads((tmp_path / "whole/search.json").read_text())["data"]["name"] == "brightness"


def test_the_default_trainer_takes_classification_alone(tmp_path: Path, task: Brightness) -> None:
    with pytest.raises(InvalidSetting, match="trainer="):
        lt.find("lenet300", task, CONFIG, recipe=RECIPE, folder=tmp_path, device="cpu")


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


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_evaluates_and_trains(name: str, task: Brightness) -> None:
    """The score is the same whenever it is taken, lies where the metric says, and training makes the network better."""
    module = tasks.load(name)
    found, trainer = module.task(task.data), module.trainer(Execution())
    model = lt.build_model("lenet300", **found.description.arguments)
    assert model(found.example).shape[0] == 2 and {*found.splits} == {"train", "val", "test"}
    before = found.evaluate(model.train(), "val", CPU)
    assert model.training and found.evaluate(model, "val", CPU) == before and found.adapt(RECIPE).epochs
    saved: list[Epoch] = []
    done = trainer(model, found, ArmTraining(Arm(0, "dense", 0), RECIPE, CPU), None, lambda epoch, _: saved.append(epoch))
    assert done.epochs == saved and len(saved) == RECIPE.epochs and done.score == found.evaluate(model, "val", CPU)
    assert found.metric.gain(done.score.value, before.value) > 0
