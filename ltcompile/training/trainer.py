"""The seam between the search and a training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ltcompile.core.arm import Arm
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import Score, Task
from ltcompile.training.loop import Epoch, Progress


@dataclass(frozen=True)
class ArmTraining:
    """How an arm is trained: by which recipe, where, from which epoch of the schedule on.

    `after_step` is to be called after each step of the optimiser (a masked arm zeroes its dropped weights again). `teacher` is a trained
    network whose outputs are `recipe.distill` of the loss. All chance comes from `arm.stream("training")`.
    """

    arm: Arm
    recipe: Recipe
    device: torch.device
    first_epoch: int = 0
    after_step: Callable[[], None] | None = None
    teacher: nn.Module | None = None


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
