"""One loop trains every network of every arm.

Randomness is a function of (seed, epoch), never of what ran before: a run that stopped after any epoch goes on to the same
bits. The loop sees a network, batches and an optimiser, so data-parallel training needs a wrapped network and split batches,
not a second loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Record
from ltcompile.data import Dataset
from ltcompile.errors import TrainingFailed
from ltcompile.train.device import autocast_dtype, lay_out
from ltcompile.train.evaluate import Evaluation, evaluate
from ltcompile.train.loss import loss_of


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
    """All epochs of one training, and the validation behind the last of them."""

    epochs: list[Epoch]
    val: Evaluation


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
    after_step: Callable[[nn.Module], None] | None = None,
    progress: Progress | None = None,
    state: dict[str, Any] | None = None,
    teacher: nn.Module | None = None,
) -> Training:
    """Train `model` in place from `first_epoch` of the recipe's schedule to its end; momentum starts at zero.

    Args:
        after_step: called on the network after each step (the masked search zeroes its dropped weights again).
        state: what `progress` was handed before an interruption: training goes on behind its epoch, which is not the last.
        teacher: a trained network, put into eval mode and on `device`, whose answers are `recipe.distill` of the loss.

    Raises:
        TrainingFailed: the loss is not finite.
    """
    layout = lay_out(model, device)
    optimiser = torch.optim.SGD(_decayed(model, recipe), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True)
    done: list[Epoch] = []
    if state is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        done = [Epoch.from_json(row) for row in state["epochs"]]
    taught = _taught(teacher, device)
    forward = torch.compile(model) if device.type == "cuda" else model
    for epoch in range(first_epoch + len(done), recipe.epochs):
        row, val = _epoch(model, forward, taught, optimiser, data, recipe, seed, epoch, device, layout, after_step)
        done.append(row)
        if progress is not None:
            saved = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epochs": [e.to_json() for e in done]}
            progress(row, saved)
    return Training(done, val)


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


def _epoch(
    model: nn.Module,
    forward: Callable[..., Any],
    taught: Callable[[Tensor], Tensor | None],
    optimiser: torch.optim.Optimizer,
    data: Dataset,
    recipe: Recipe,
    seed: int,
    epoch: int,
    device: torch.device,
    layout: torch.memory_format,
    after_step: Callable[[nn.Module], None] | None,
) -> tuple[Epoch, Evaluation]:
    started = time.perf_counter()
    stream = seed * 1_000_003 + epoch
    torch.manual_seed(stream)  # dropout
    model.train()
    dtype = autocast_dtype(recipe, device)
    size = min(recipe.batch, len(data.train))
    steps = len(data.train) // size
    loss_sum, right, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    rate = recipe.lr
    for step, (images, labels) in enumerate(data.train.batches(size, device, recipe, stream)):
        rate = recipe.rate_at(epoch + step / steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits, target = forward(images.contiguous(memory_format=layout)), taught(images)
        loss = loss_of(logits.float() if dtype else logits, labels, recipe, target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if after_step is not None:
            after_step(model)
        loss_sum += loss.detach() * len(labels)
        right += (logits.detach().argmax(1) == labels).sum()
        seen += len(labels)
    mean_loss = loss_sum.item() / seen
    if not math.isfinite(mean_loss):
        raise TrainingFailed(
            f"the loss is {mean_loss} in epoch {epoch + 1} at learning rate {rate:.3g}: try a smaller --lr or more warm-up"
        )
    val = evaluate(model, data.val, recipe, device)
    seconds = time.perf_counter() - started
    return Epoch(epoch, rate, mean_loss, right.item() / seen, val.loss, val.accuracy, seconds, seen / seconds), val
