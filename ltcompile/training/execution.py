"""How training steps are computed, chosen by measurement where the recipe leaves it open.

A trial times whole steps, images included, on copies of the network: bfloat16 against fp32 where the processor multiplies it, then compiled
against not where the training is long enough to earn back the compilation. Short trainings are spared both: they are in fp32, not compiled.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch
from torch import nn

from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Record, cpu_name
from ltcompile.core.streams import seeded, stream
from ltcompile.core.task import Batch, Task
from ltcompile.errors import TrainingFailed
from ltcompile.training.device import multiplies_bf16
from ltcompile.training.step import Stepper

Products = Literal["fp32", "bf16"]
Name = TypeVar("Name", bound=str)
BACKEND = "inductor"
TRIAL_S = 60.0  # trainings that take less are not worth the trial of a precision
COMPILE_TRIAL_S = 600.0  # nor that of a compilation
STEPS = 5
LEAST_GAIN = 0.1  # of the time, below which neither rounding nor compilation is worth it


@dataclass(frozen=True)
class Execution(Record):
    """The precision of a training's products, the backend of torch.compile ("": not compiled), and why.

    `step_ms` are the least times of the trial by candidate, `compile_s` is what the first compiled step took beyond the others; both are of `machine`.
    """

    precision: Products = "fp32"
    backend: str = ""
    reason: str = "the recipe's"
    step_ms: dict[str, float] = field(default_factory=dict)
    compile_s: float | None = None
    machine: str = ""

    @property
    def dtype(self) -> torch.dtype | None:
        """What autocast multiplies in; None for plain fp32."""
        return torch.bfloat16 if self.precision == "bf16" else None


def settled(recipe: Recipe) -> Execution:
    """What the recipe fixes; where it leaves the choice open, fp32 that is not compiled."""
    precision: Products = "bf16" if recipe.precision == "bf16" else "fp32"
    return Execution(precision, "" if recipe.compile in ("auto", "never") else recipe.compile)


def choose_execution(model: nn.Module, task: Task, recipe: Recipe, device: torch.device, backend: str = BACKEND) -> Execution:
    """The fastest way to train `model` for `task` by `recipe` on `device`, among those that the recipe allows. `model` is untouched.

    `backend` of torch.compile is what is tried where the recipe says "auto".

    Raises TrainingFailed where not even two images fit into memory.
    """
    base, recipe = settled(recipe), replace(recipe, virtual_ranks=1)  # the steps of one process are timed
    precisions: list[Products] = ["fp32", "bf16"] if recipe.precision == "auto" and multiplies_bf16(device) else [base.precision]
    if len(precisions) == 1 and recipe.compile != "auto":
        return base
    with seeded(stream("trial", 0)):
        return _Trial(model, task, recipe, device, backend).choose(base, precisions)


class _Trial:
    """Steppers of several executions, timed in turns on the same batches."""

    def __init__(self, model: nn.Module, task: Task, recipe: Recipe, device: torch.device, backend: str) -> None:
        self.model, self.task, self.recipe, self.device, self.backend = model, task, recipe, device, backend
        count = task.sizes["train"]
        size = min(recipe.batch, count)
        self.steps = recipe.epochs * (count // size)
        self.batches = _endless(task, recipe, size, device)

    def choose(self, base: Execution, precisions: list[Products]) -> Execution:
        eager = {name: self.stepper(replace(base, precision=name, backend="")) for name in precisions[:1]}
        seconds = self.times(eager, 2)
        base = replace(base, machine=_machine(self.device))
        if self.steps * seconds[precisions[0]] < TRIAL_S:
            return replace(base, reason=f"trainings of less than {TRIAL_S:g} s are not timed", step_ms=_ms(seconds))
        if len(precisions) > 1:
            eager |= {name: self.stepper(replace(base, precision=name, backend="")) for name in precisions[1:]}
            seconds = self.times(eager, STEPS)
        fastest = min(seconds, key=lambda name: seconds[name])
        if seconds[fastest] > (1 - LEAST_GAIN) * seconds[precisions[0]]:
            fastest = precisions[0]
        found = replace(base, precision=fastest, reason="the fastest by the times of whole steps", step_ms=_ms(seconds))
        if self.recipe.compile != "auto" or self.steps * seconds[fastest] < COMPILE_TRIAL_S:
            return found
        return self.compiled(found, eager[fastest])

    def compiled(self, found: Execution, eager: Stepper) -> Execution:
        """`found`, compiled where that pays within one training."""
        wanted, name = replace(found, backend=self.backend), f"{found.precision}, {self.backend}"
        try:
            stepper = self.stepper(wanted)
            first = self.once(stepper)
        except TrainingFailed as error:
            return replace(found, reason=f"{found.reason}; {error}")
        seconds = self.times({str(found.precision): eager, name: stepper}, STEPS)
        cost, step_ms = max(first - seconds[name], 0.0), found.step_ms | _ms(seconds)
        pays = cost + self.steps * seconds[name] < (1 - LEAST_GAIN) * self.steps * seconds[found.precision]
        return replace(wanted if pays else found, step_ms=step_ms, compile_s=round(cost, 1))

    def stepper(self, execution: Execution) -> Stepper:
        return Stepper(copy.deepcopy(self.model).train(), self.task, self.recipe, self.device, execution.dtype, execution.backend)

    def times(self, steppers: Mapping[Name, Stepper], steps: int) -> dict[Name, float]:
        """The least seconds of a step of each, by turns, behind one that warms up: other work on the machine only adds to them."""
        for stepper in steppers.values():
            self.once(stepper)
        found = [{name: self.once(stepper) for name, stepper in steppers.items()} for _ in range(steps)]
        return {name: min(turn[name] for turn in found) for name in steppers}

    def once(self, stepper: Stepper) -> float:
        """The seconds of one step, from fetching its images on."""
        began = time.perf_counter()
        stepper([next(self.batches)], 0.0)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began


def _endless(task: Task, recipe: Recipe, size: int, device: torch.device) -> Iterator[Batch]:
    while True:
        yield from task.batches("train", size, device, recipe, stream("trial", 1))


def _ms(seconds: Mapping[Name, float]) -> dict[str, float]:
    return {name: round(1000 * value, 3) for name, value in seconds.items()}


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"
