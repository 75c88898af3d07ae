"""One step of training: a batch in, gradients, optimiser; compiled or not, in one precision or the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ltcompile.core.notice import notify
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import Batch, Loss, Task, Teacher, items
from ltcompile.errors import InvalidSetting, TrainingFailed
from ltcompile.graph.inputs import Arguments
from ltcompile.prune.regularisers import Regulariser
from ltcompile.training.batch import call, in_fp32, split, to_layout
from ltcompile.training.device import to_memory_format
from ltcompile.training.features import Features
from ltcompile.training.lookahead import Lookahead
from ltcompile.training.memory import fitting
from ltcompile.training.parallel import VirtualRanks


class Stepper:
    """Steps of the recipe's optimiser that train `model` in place by the loss of `task`; momentum starts at zero.

    Args:
        dtype: what autocast multiplies in; None for fp32.
        backend: of torch.compile; empty for none. What the process has compiled before is forgotten: torch compiles one code object eight
            times, all networks of a class are one code object, and from the ninth on it would silently compile none.
        after_step: called after each step.
        teacher: a network whose answers are `recipe.distill` of the loss; it is moved to `device`, in eval mode.
        seed: the training's, of which the projections to the teacher's layers are drawn.

    Attributes:
        parts: how many parts a batch has to be computed in, to fit into memory.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        recipe: Recipe,
        device: torch.device,
        dtype: torch.dtype | None,
        backend: str,
        after_step: Callable[[], None] | None = None,
        teacher: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.task, self.recipe, self.device = model, task, recipe, device
        self.dtype, self.after_step = dtype, after_step
        self.layout, self.parts = to_memory_format(model, device), 1
        self.teacher = _teacher(teacher, device) if teacher is not None else None
        self.features = None
        if teacher is not None and recipe.distill_layers:
            self.features = Features(model, teacher, recipe.distill_layers, task.example, device, seed)
        self.frozen: list[nn.Parameter] = []  # from `frozen_after` on
        self.optimiser = _optimiser(model, recipe, self.features)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True) if recipe.ema else None
        self.lookahead = Lookahead(model, recipe.lookahead) if recipe.lookahead else None
        self.regulariser = _regulariser(model, task, recipe, device) if recipe.regulariser else None
        if self.features is not None:  # its hooks run outside a compiled graph
            backend = ""
        self.backend, self.forward = backend, _compiled(model, backend) if backend else model
        self.parallel = VirtualRanks(model, recipe.virtual_ranks, device) if recipe.virtual_ranks > 1 else None
        if self.parallel is not None:
            self.forward = self.parallel.wrapped(self.forward)

    def __call__(self, batches: Sequence[Batch], rate: float, progress: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """One step of the optimiser; the batch's mean loss before it, and how many answers were correct, where the task counts them.

        `batches` are this process's shards of the batch: the whole of it where the recipe has one virtual rank. `progress` is the share of the
        training that is done.

        Raises TrainingFailed where not even two items fit into memory, or the network cannot be compiled.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["rate"]
        found = self._fitting(batches[0]) if self.parallel is None else self.parallel.step(self.forward, self._shard_gradients, batches)
        for parameter in self.frozen:
            parameter.grad = None
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_([p for group in self.optimiser.param_groups for p in group["params"]], self.recipe.clip_norm)
        self.optimiser.step()
        if self.regulariser is not None:
            self.regulariser.step(rate, progress)
        if self.after_step is not None:
            self.after_step()
        if self.lookahead is not None:
            self.lookahead.step(progress)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return found

    def train_mode(self, epoch: int = 0) -> None:
        """Training mode, but for what is frozen in `epoch`."""
        self.model.train()
        for name, module in self.model.named_modules():
            if self.recipe.is_frozen(name, epoch):
                module.eval()
        if self.recipe.frozen_after:
            self.frozen = [parameter for name, parameter in self.model.named_parameters() if self.recipe.is_frozen(name, epoch)]

    @property
    def result(self) -> nn.Module:
        """The network that is validated and kept: the average of the weights, where the recipe needs one."""
        return self.model if self.average is None else self.average.module

    def _shard_gradients(self, batch: Batch, fresh: bool) -> tuple[Tensor, Tensor | None]:
        return self._gradients(batch, 1, fresh) if self.parallel and self.parallel.reduces else self._fitting(batch)

    def _fitting(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """As `_gradients`, in as many parts as memory needs."""
        count = items(batch)
        found, parts = fitting(partial(self._gradients, batch), count, self.parts)
        if parts > self.parts:
            self.parts = parts
            notify(_message(self.model, count, parts))
        return found

    def _gradients(self, batch: Batch, parts: int, fresh: bool = True) -> tuple[Tensor, Tensor | None]:
        """Leave the gradient of the batch's mean loss in the parameters, or add it to theirs; that loss, and how many answers were correct."""
        if fresh:
            self.optimiser.zero_grad(set_to_none=True)
        losses, correct, count = [], [], items(batch)
        for few in split(batch, parts):
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None), _compile_errors(self.backend):
                found = self._loss((to_layout(few[0], self.layout), few[1]))
            loss = found.value * (items(few) / count)
            loss.backward()
            losses.append(loss.detach())
            correct.append(found.correct)
        known = [each for each in correct if each is not None]
        return torch.stack(losses).sum(), torch.stack(known).sum() if known else None

    def _loss(self, batch: Batch) -> Loss:
        """The task's loss, and that of features where the recipe names layers."""
        if self.features is None or self.teacher is None:
            return self.task.loss(self.forward, batch, self.recipe, self.teacher)
        with self.features.watching(self.teacher, batch[0]) as distance:
            found = self.task.loss(self.forward, batch, self.recipe, self.teacher if self.recipe.distill else None)
            return Loss(found.value + self.recipe.distill_weight * distance(), found.correct)


def _compiled(model: nn.Module, backend: str) -> nn.Module:
    """`model`, compiled at the first batch of each shape.

    The code for a shape must not depend on which shapes came before, as a resumed training has seen fewer: none is dynamic.
    """
    torch.compiler.reset()
    with _compile_errors(backend):
        return cast(nn.Module, torch.compile(model, backend=backend, dynamic=False))


@contextmanager
def _compile_errors(backend: str) -> Iterator[None]:
    """Turns an error of torch.compile into a TrainingFailed."""
    if not backend:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingFailed(
            f"torch.compile's backend {backend!r} cannot compile the network here ({reason}); train where it can, or begin a new run with "
            "compile=never"
        ) from error


def _optimiser(model: nn.Module, recipe: Recipe, features: Features | None) -> torch.optim.Optimizer:
    groups = _decayed(model, recipe)
    if features is not None and (projections := list(features.projections.parameters())):
        groups.append({"params": projections, "weight_decay": recipe.weight_decay, "rate": 1.0})
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True)


def _decayed(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Weight decay for matrices and filters alone; biases and batch-norm parameters are left to the data."""
    trained = [p for name, p in model.named_parameters() if not recipe.is_frozen(name)]
    if not trained:
        raise InvalidSetting(f"frozen={list(recipe.frozen)} leaves no parameter to train")
    shifts = {m.bias for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.bias is not None}
    faster = [p for p in trained if p in shifts and recipe.norm_bias_rate != 1]
    decayed, free = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1 and not any(p is q for q in faster)]
    groups = [(decayed, recipe.weight_decay, 1.0), (free, 0.0, 1.0), (faster, 0.0, recipe.norm_bias_rate)]
    return [{"params": found, "weight_decay": decay, "rate": rate} for found, decay, rate in groups[: 3 if faster else 2]]


def _regulariser(model: nn.Module, task: Task, recipe: Recipe, device: torch.device) -> Regulariser:
    example = Arguments.of(task.example).map(lambda t: t.to(device))
    strength, ratio = recipe.regulariser_strength or None, recipe.regulariser_ratio or None
    return Regulariser(recipe.regulariser, model, example, strength=strength, ratio=ratio)


def _teacher(network: nn.Module, device: torch.device) -> Teacher:
    """Inputs -> the outputs of a trained network, without gradients."""
    layout = to_memory_format(network.eval(), device)

    @torch.no_grad()
    def answer(inputs: Any) -> Any:
        return in_fp32(call(network, to_layout(inputs, layout)))

    return answer


def _message(model: nn.Module, count: int, parts: int) -> str:
    """What a user has to know of batches in parts."""
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    but = f", but batch norm sees {count // parts} at a time" if normed else ""
    return (
        f"a batch of {count} items does not fit into memory: it is computed in {parts} parts of {count // parts}; "
        f"their gradients add up to the same step{but}"
    )
