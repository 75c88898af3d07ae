"""Image classification: the share of correct answers, trained by the project's own loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.core.description import Description
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import ACCURACY, Metric, Part, Score, Task
from ltcompile.data import Dataset, Split
from ltcompile.errors import InvalidSetting
from ltcompile.training import ArmTraining, Evaluation, Execution, Outcome, Progress, evaluate, train


class Classification:
    """A data set of labelled images."""

    metric: Metric = ACCURACY

    def __init__(self, data: Dataset) -> None:
        self.data = data

    @property
    def description(self) -> Description:
        return self.data.description

    @cached_property
    def example(self) -> Tensor:
        """Two validation images (2, C, H, W), normalised, on the CPU."""
        return self.data.example

    @property
    def splits(self) -> Mapping[Part, Split]:
        return {"train": self.data.train, "val": self.data.val, "test": self.data.test}

    def adapt(self, recipe: Recipe) -> Recipe:
        return self.data.adapt(recipe)

    def evaluate(self, model: nn.Module, part: Part, device: torch.device) -> Score:
        return _score(evaluate(model, self.splits[part], device))


@dataclass(frozen=True)
class SgdTrainer:
    """`training.train` on a `Classification`; `execution` says in which precision, and whether compiled."""

    execution: Execution

    def __call__(self, model: nn.Module, task: Task, training: ArmTraining, state: dict[str, Any] | None, save: Progress) -> Outcome:
        done = train(
            model,
            data_of(task),
            training.recipe,
            training.arm.stream("training"),
            training.device,
            execution=self.execution,
            first_epoch=training.first_epoch,
            after_step=training.after_step,
            progress=save,
            state=state,
            teacher=training.teacher,
        )
        return Outcome(done.epochs, _score(done.val), done.parts)


task, trainer = Classification, SgdTrainer


def data_of(task: Task) -> Dataset:
    """The data set of a classification. Raises InvalidSetting for another task, which the project's own loop cannot train."""
    if not isinstance(task, Classification):
        raise InvalidSetting("trainer=: the default one trains classification alone; give one that trains this task")
    return task.data


def _score(found: Evaluation) -> Score:
    return Score(found.accuracy, found.loss, found.correct_hex)
