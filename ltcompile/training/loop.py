"""One loop trains every network of every arm.

Randomness is a function of (seed, epoch), never of what ran before, and a state within an epoch holds the generators': a run that stopped at any
batch resumes to the same bits. The loop sees a network, batches and an optimiser, so that data-parallel training (`parallel`) is the same loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ltcompile import ranks
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Record
from ltcompile.core.streams import seeded, stream
from ltcompile.core.task import Score, Shard, Task
from ltcompile.errors import InvalidFile, TrainingFailed
from ltcompile.training.execution import Execution, settled
from ltcompile.training.parallel import State, local_batches, random_state, set_random_state, shard_size, synchronised
from ltcompile.training.step import Stepper

LOOK_STEPS = 50  # how often losses are looked at: each look waits for the GPU


@dataclass(frozen=True)
class Epoch(Record):
    """One epoch: mean loss over the (augmented) training items, the share of them that was correct (0 where an item is not right or wrong),
    loss and metric on validation items, seconds with validation, and how many damaged training items were skipped.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_score: float
    seconds: float
    images_per_second: float
    skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_json().items() if name != "skipped" or value}


@dataclass(frozen=True)
class Training:
    """All epochs of one training, the validation score after the last of them, and in how many parts its batches had to be computed."""

    epochs: list[Epoch]
    val: Score
    parts: int


class Progress(Protocol):
    """Called after every epoch, with a state from which `train` can resume."""

    def __call__(self, epoch: Epoch, state: dict[str, Any], /) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """`save` receives the state within an epoch whenever so many `seconds` have passed since the last state, and when training must stop."""

    save: Callable[[dict[str, Any]], None]
    seconds: float = math.inf


@dataclass(frozen=True)
class _Begun:
    """What of an epoch came before its next batch: the batches' losses, correct answers, each virtual rank's random state, seconds, skipped items."""

    losses: Tensor
    right: Tensor
    random: list[State]
    seconds: float
    skipped: int


def train(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    *,
    execution: Execution | None = None,
    first_epoch: int = 0,
    after_step: Callable[[], None] | None = None,
    progress: Progress | None = None,
    state: dict[str, Any] | None = None,
    teacher: nn.Module | None = None,
    checkpoint: Checkpoint | None = None,
) -> Training:
    """Train `model` in place from `first_epoch` of the recipe's schedule to its end; momentum starts at zero.

    A batch that does not fit into the GPU's memory is computed in parts whose gradients add up to the batch's. Where torchrun started several
    processes (`ranks.joined`), all call this function with the same arguments, and train together.

    Args:
        execution: in which precision, and whether compiled; by default what the recipe fixes (`settled`).
        after_step: called after each step (the masked search zeroes its dropped weights again).
        state: a state that `progress` or `checkpoint` received before an interruption: training resumes after its epoch, which must not be the
            last, or after its batch.
        teacher: a trained network, put into eval mode and on `device`, whose answers are `recipe.distill` of the loss.
        checkpoint: what to do with states within an epoch, and how often.

    Raises:
        InvalidSetting: `virtual_ranks` fit neither the processes nor the data.
        KeyboardInterrupt: a process received a stop signal; all stopped at the same batch, whose state `checkpoint` has.
        TrainingFailed: a loss is not finite, not even two images fit into memory, or the network cannot be compiled.
    """
    execution = execution or settled(recipe)
    with synchronised(model, recipe, device):
        stepper = Stepper(model, task, recipe, device, execution.dtype, execution.backend, after_step, teacher, seed)
        loop = _Loop(stepper, seed, checkpoint)
        if state is not None:
            loop.resume(state)
        for epoch in range(first_epoch + len(loop.done), recipe.epochs):
            with seeded(stream("dropout", seed, epoch=epoch)):
                row, val = loop.epoch(epoch)
            loop.done.append(row)
            if progress is not None:
                progress(row, loop.state())
            loop.saved = time.monotonic()
    if stepper.average is not None:
        model.load_state_dict(stepper.average.module.state_dict())
    return Training(loop.done, val, stepper.parts)


class _Loop:
    """One training under way: completed epochs, and within an epoch what came before its next batch."""

    def __init__(self, stepper: Stepper, seed: int, checkpoint: Checkpoint | None) -> None:
        self.stepper, self.task, self.seed, self.checkpoint = stepper, stepper.task, seed, checkpoint
        self.model, self.recipe, self.device, self.parallel = stepper.model, stepper.recipe, stepper.device, stepper.parallel
        self.done: list[Epoch] = []
        self.begun: _Begun | None = None  # the epoch that a state was within
        self.saved = time.monotonic()

    def state(self, begun: _Begun | None = None) -> dict[str, Any]:
        """All that the batches to come depend on. Momentum is the optimiser's; the rate and, between epochs, all chance are functions of the epoch."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.stepper.optimiser.state_dict(),
            "epochs": [epoch.to_json() for epoch in self.done],
            "parts": self.stepper.parts,
            **{name: part.state_dict() for name, part in self._parts()},
            **({"begun": vars(begun)} if begun is not None else {}),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Take up a `state`. Raises InvalidFile where it is of another training."""
        try:
            self.model.load_state_dict(state["model"])
            self.stepper.optimiser.load_state_dict(state["optimiser"])
            for name, part in self._parts():
                part.load_state_dict(state[name])
            self.stepper.parts = int(state["parts"])
            self.done = [Epoch.from_json(row) for row in state["epochs"]]
            if "begun" in state:
                self.begun = _Begun(**state["begun"])
                if len(self.begun.losses) > self.task.sizes["train"] // shard_size(self.recipe, self.task.sizes["train"]):
                    raise ValueError("it is behind more batches than an epoch has")
                with seeded(0):
                    self._take_up(self.begun)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            message = " ".join(str(error).split())[:300]
            raise InvalidFile(
                f"the checkpoint is of another training ({message}); remove the run's .partial.pt, and resume=True repeats it"
            ) from error

    def _parts(self) -> list[tuple[str, Any]]:
        """What else has a state, where the recipe needs it."""
        found: dict[str, Any] = {
            "average": self.stepper.average,
            "lookahead": self.stepper.lookahead,
            "regulariser": self.stepper.regulariser,
        }
        found["features"] = self.stepper.features and self.stepper.features.projections
        return [(name, part) for name, part in found.items() if part is not None]

    def epoch(self, epoch: int) -> tuple[Epoch, Score]:
        """Train for one epoch, and validate."""
        started = time.perf_counter()
        self.stepper.train_mode(epoch)
        count = self.task.sizes["train"]
        size = shard_size(self.recipe, count)
        steps = count // size
        losses, right, first = torch.zeros(steps, device=self.device), torch.zeros((), device=self.device), 0
        rates = [self.recipe.rate_at(epoch + step / steps) for step in range(steps)]
        skipped = -self._skipped
        if self.parallel is not None:
            self.parallel.seed(self.seed, epoch)
        if (begun := self.begun) is not None:
            self.begun, first, started = None, len(begun.losses), started - begun.seconds
            losses[:first], right = begun.losses.to(self.device), begun.right.to(self.device)
            skipped += 0 if ranks.follows() else begun.skipped
            self._take_up(begun)
        known = epoch if self.recipe.alternate_flip else None
        shards = [Shard(index, self.recipe.virtual_ranks, first, known) for index in (self.parallel.local if self.parallel else [0])]
        batches = local_batches(self.task, size, self.device, self.recipe, stream("batches", self.seed, epoch=epoch), shards)
        for step, batch in enumerate(batches, first):
            losses[step], correct = self.stepper(batch, rates[step], (epoch + step / steps) / self.recipe.epochs)
            right += 0 if correct is None else correct
            due = self.checkpoint is not None and not ranks.follows() and time.monotonic() - self.saved >= self.checkpoint.seconds
            save, stop = ranks.largest(due, ranks.stopping())
            if save or stop or (step + 1) % LOOK_STEPS == 0 or step + 1 == steps:
                self._check_finite(losses[: step + 1], epoch, rates)
            if save or stop:
                self._save(losses[: step + 1], right, time.perf_counter() - started, skipped)
            if stop:
                ranks.request_stop(stop)
                raise KeyboardInterrupt
        if self.stepper.lookahead is not None:
            self.stepper.lookahead.join()
        self._settle()
        val = ranks.agreed(self.task.evaluate(self.stepper.result, "val", self.device))
        if not math.isfinite(val.loss):
            raise self._diverged(f"the validation loss is {val.loss} after epoch {epoch + 1}, at learning rate {rates[-1]:.3g}")
        seconds, seen = time.perf_counter() - started, steps * size
        skipped = sum(ranks.gathered([skipped + self._skipped]))
        shares = losses.mean().item(), right.item() / seen
        return Epoch(epoch, rates[-1], *shares, val.loss, val.value, seconds, seen / seconds, skipped), val

    def _save(self, losses: Tensor, right: Tensor, seconds: float, skipped: int) -> None:
        """Hand over the state behind a batch."""
        skipped = sum(ranks.gathered([skipped + self._skipped]))
        self._settle()
        states = self.parallel.states if self.parallel is not None else [random_state(self.device)]
        if self.checkpoint is not None:
            self.checkpoint.save(self.state(_Begun(losses.clone(), right.clone(), states, seconds, skipped)))
        self.saved = time.monotonic()

    @property
    def _skipped(self) -> int:
        """How many training items could not be read so far, by tasks that count them."""
        return int(getattr(self.task, "skipped", 0))

    def _settle(self) -> None:
        if self.parallel is not None:
            self.parallel.settle(*filter(None, (self.model, self.stepper.average)))

    def _take_up(self, begun: _Begun) -> None:
        """Continue the random numbers of an epoch."""
        if self.parallel is not None:
            self.parallel.states = begun.random
        else:
            set_random_state(begun.random[0], self.device)

    def _check_finite(self, losses: Tensor, epoch: int, rates: list[float]) -> None:
        """Raises TrainingFailed at the first of an epoch's `losses`, one a batch, that is not finite."""
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        if bad:
            place = f"in epoch {epoch + 1}, batch {bad[0] + 1} of {len(rates)}, at learning rate {rates[bad[0]]:.3g}"
            raise self._diverged(f"the loss is {losses[bad[0]].item()} {place}")

    def _diverged(self, what: str) -> TrainingFailed:
        rounded = "" if self.stepper.dtype is None else ", or precision=fp32"
        return TrainingFailed(f"{what}; try lr={self.recipe.lr / 10:.1g}, or a larger warmup_epochs={rounded}")
