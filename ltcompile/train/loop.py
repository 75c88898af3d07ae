"""One loop trains every network of every arm.

Randomness is a function of (seed, epoch), never of what ran before: a run that stopped after any epoch resumes to the same
bits. The loop sees a network, batches and an optimiser, so data-parallel training needs a wrapped network and split batches,
not a second loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ltcompile.core.notice import notify
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Record
from ltcompile.core.streams import seeded, stream
from ltcompile.data import Dataset
from ltcompile.errors import BadFile, TrainingFailed
from ltcompile.train.device import autocast_dtype, lay_out
from ltcompile.train.evaluate import Evaluation, evaluate
from ltcompile.train.loss import loss_of
from ltcompile.train.memory import fitting

LOOK_STEPS = 50  # how often losses are looked at: each look waits for the GPU


@dataclass(frozen=True)
class Epoch(Record):
    """One epoch: mean loss over the (augmented) training images, accuracies as shares of one, seconds with validation."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Training:
    """All epochs of one training, the validation behind the last of them, and in how many parts its batches had to be computed."""

    epochs: list[Epoch]
    val: Evaluation
    parts: int


class Progress(Protocol):
    """Told after every epoch, with a state from which `train` can go on."""

    def __call__(self, epoch: Epoch, state: dict[str, Any], /) -> None: ...


def train(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    *,
    first_epoch: int = 0,
    after_step: Callable[[], None] | None = None,
    progress: Progress | None = None,
    state: dict[str, Any] | None = None,
    teacher: nn.Module | None = None,
) -> Training:
    """Train `model` in place from `first_epoch` of the recipe's schedule to its end; momentum starts at zero.

    A batch that does not fit into the GPU's memory is computed in parts whose gradients add up to the batch's.

    Args:
        after_step: called after each step (the masked search zeroes its dropped weights again).
        state: what `progress` was handed before an interruption: training goes on behind its epoch, which is not the last.
        teacher: a trained network, put into eval mode and on `device`, whose answers are `recipe.distill` of the loss.

    Raises:
        TrainingFailed: a loss is not finite, or not even two images fit into memory.
    """
    loop = _Loop(model, data, recipe, seed, device, after_step, teacher)
    done = loop.go_on(state) if state is not None else []
    for epoch in range(first_epoch + len(done), recipe.epochs):
        with seeded(stream("dropout", seed, epoch=epoch)):
            row, val = loop.epoch(epoch)
        done.append(row)
        if progress is not None:
            progress(row, loop.state(done))
    return Training(done, val, loop.parts)


class _Loop:
    """One training under way."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        after_step: Callable[[], None] | None,
        teacher: nn.Module | None,
    ) -> None:
        self.model, self.data, self.recipe, self.seed, self.device, self.after_step = model, data, recipe, seed, device, after_step
        self.layout, self.dtype = lay_out(model, device), autocast_dtype(recipe, device)
        self.optimiser = torch.optim.SGD(
            _decayed(model, recipe), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True
        )
        self.taught = _taught(teacher, device)
        self.forward = torch.compile(model) if device.type == "cuda" else model
        self.parts = 1

    def state(self, done: list[Epoch]) -> dict[str, Any]:
        """All that the epochs to come depend on. Momentum is the optimiser's; the rate and all chance are functions of the epoch."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "epochs": [epoch.to_json() for epoch in done],
            "parts": self.parts,
        }

    def go_on(self, state: dict[str, Any]) -> list[Epoch]:
        """Take up a `state`; the epochs behind it. Raises BadFile where it is of another training."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.parts = int(state.get("parts", 1))  # runs that began before it knew of none
            return [Epoch.from_json(row) for row in state["epochs"]]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            told = " ".join(str(error).split())[:300]
            raise BadFile(
                f"the checkpoint is of another training ({told}); remove the run's .partial.pt, and --resume repeats it"
            ) from error

    def epoch(self, epoch: int) -> tuple[Epoch, Evaluation]:
        """Train for one epoch, and validate."""
        started = time.perf_counter()
        self.model.train()
        size = min(self.recipe.batch, len(self.data.train))
        steps = len(self.data.train) // size
        losses, right = torch.zeros(steps, device=self.device), torch.zeros((), device=self.device)
        rates = [self.recipe.rate_at(epoch + step / steps) for step in range(steps)]
        batches = self.data.train.batches(size, self.device, self.recipe, stream("batches", self.seed, epoch=epoch))
        for step, (images, labels) in enumerate(batches):
            losses[step], hits = self._step(images, labels, rates[step])
            right += hits
            if (step + 1) % LOOK_STEPS == 0 or step + 1 == steps:
                self._check_finite(losses[: step + 1], epoch, rates)
        val = evaluate(self.model, self.data.val, self.device)
        if not math.isfinite(val.loss):
            raise self._diverged(f"the validation loss is {val.loss} after epoch {epoch + 1}, at learning rate {rates[-1]:.3g}")
        seconds, seen = time.perf_counter() - started, steps * size
        return Epoch(epoch, rates[-1], losses.mean().item(), right.item() / seen, val.loss, val.accuracy, seconds, seen / seconds), val

    def _step(self, images: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """One step of the optimiser; the batch's mean loss before it, and how many answers were right."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        found, parts = fitting(partial(self._gradients, images, labels), len(images), self.parts)
        if parts > self.parts:
            self.parts = parts
            notify(_told(self.model, len(images), parts))
        self.optimiser.step()
        if self.after_step is not None:
            self.after_step()
        return found

    def _gradients(self, images: Tensor, labels: Tensor, parts: int) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the batch's mean loss in the parameters; that loss, and how many answers were right."""
        self.optimiser.zero_grad(set_to_none=True)
        losses, hits = [], []
        for few, theirs in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                logits, target = self.forward(few.contiguous(memory_format=self.layout)), self.taught(few)
            loss = loss_of(logits.float() if self.dtype else logits, theirs, self.recipe, target) * (len(few) / len(images))
            loss.backward()
            losses.append(loss.detach())
            hits.append((logits.detach().argmax(1) == theirs).sum())
        return torch.stack(losses).sum(), torch.stack(hits).sum()

    def _check_finite(self, losses: Tensor, epoch: int, rates: list[float]) -> None:
        """Raises TrainingFailed at the first of an epoch's `losses`, one a batch, that is not finite."""
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        if bad:
            place = f"in epoch {epoch + 1}, batch {bad[0] + 1} of {len(rates)}, at learning rate {rates[bad[0]]:.3g}"
            raise self._diverged(f"the loss is {losses[bad[0]].item()} {place}")

    def _diverged(self, what: str) -> TrainingFailed:
        rounded = "" if self.dtype is None else ", or --precision fp32"
        return TrainingFailed(f"{what}; try a smaller --lr, such as {self.recipe.lr / 10:.1g}, or more --warmup-epochs{rounded}")


def _decayed(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Weight decay for matrices and filters alone; biases and batch-norm parameters are left to the data."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    free = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]


def _taught(teacher: nn.Module | None, device: torch.device) -> Callable[[Tensor], Tensor | None]:
    """Images (N, C, H, W) -> the teacher's logits (N, classes); None without one."""
    if teacher is None:
        return lambda images: None
    layout = lay_out(teacher.eval(), device)

    @torch.no_grad()
    def answer(images: Tensor) -> Tensor:
        logits: Tensor = teacher(images.contiguous(memory_format=layout))
        return logits.float() if logits.dtype == torch.bfloat16 else logits

    return answer


def _told(model: nn.Module, images: int, parts: int) -> str:
    """What a user has to know of batches in parts."""
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    but = f", but batch norm sees {images // parts} images at a time" if normed else ""
    return (
        f"a batch of {images} images does not fit into memory: it is computed in {parts} parts of {images // parts}; "
        f"their gradients add up to the same step{but}"
    )
