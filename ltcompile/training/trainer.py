"""Trainers: what the search hands an arm to. By default the project's own loop, which trains any task by its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ltcompile.core.arm import Arm
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import Score, Task
from ltcompile.training.execution import Execution
from ltcompile.training.loop import Checkpoint, Epoch, Progress, train


@dataclass(frozen=True)
class ArmTraining:
    """How an arm is trained: by which recipe, where, from which epoch of the schedule on.

    `after_step` is to be called after each step of the optimiser (a masked arm zeroes its dropped weights again). `teacher` is a trained
    network whose outputs are `recipe.distill` of the loss. `checkpoint` takes states within an epoch, from trainers that have them. All chance
    comes from `arm.stream("training")`.
    """

    arm: Arm
    recipe: Recipe
    device: torch.device
    first_epoch: int = 0
    after_step: Callable[[], None] | None = None
    teacher: nn.Module | None = None
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Outcome:
    """What a training returns besides the network: a row per epoch, the validation score after the last, and into how many parts its batches
    were split to fit into memory.
    """

    epochs: list[Epoch]
    score: Score
    parts: int = 1


class Trainer(Protocol):
    """Trains `model` in place. `save` is called after every epoch with a state; given one as `state`, training resumes after its epoch."""

    def __call__(self, model: nn.Module, task: Task, training: ArmTraining, state: dict[str, Any] | None, save: Progress) -> Outcome: ...


@dataclass(frozen=True)
class DefaultTrainer:
    """The project's own loop, `train`; `execution` says in which precision, and whether compiled."""

    execution: Execution

    def __call__(self, model: nn.Module, task: Task, training: ArmTraining, state: dict[str, Any] | None, save: Progress) -> Outcome:
        done = train(
            model,
            task,
            training.recipe,
            training.arm.stream("training"),
            training.device,
            execution=self.execution,
            first_epoch=training.first_epoch,
            after_step=training.after_step,
            progress=save,
            state=state,
            teacher=training.teacher,
            checkpoint=training.checkpoint,
        )
        return Outcome(done.epochs, done.val, done.parts)
