"""One step of training: images in, gradients, optimiser; compiled or not, in one precision or the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.core.notice import notify
from ltcompile.core.recipe import Recipe
from ltcompile.errors import TrainingFailed
from ltcompile.training.device import to_memory_format
from ltcompile.training.loss import loss_of
from ltcompile.training.memory import fitting


class Stepper:
    """Steps of SGD that train `model` in place; momentum starts at zero.

    Args:
        dtype: what autocast multiplies in; None for fp32.
        backend: of torch.compile; empty for none. What the process has compiled before is forgotten: torch compiles one code object eight
            times, all networks of a class are one code object, and from the ninth on it would silently compile none.
        after_step: called after each step.
        teacher: a network whose answers are `recipe.distill` of the loss; it is moved to `device`, in eval mode.

    Attributes:
        parts: how many parts a batch has to be computed in, to fit into memory.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device,
        dtype: torch.dtype | None,
        backend: str,
        after_step: Callable[[], None] | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        self.model, self.recipe, self.device, self.dtype, self.after_step = model, recipe, device, dtype, after_step
        self.layout, self.parts = to_memory_format(model, device), 1
        self.optimiser = torch.optim.SGD(
            _decayed(model, recipe), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True
        )
        self.taught = _taught(teacher, device)
        self.forward: Callable[[Tensor], Tensor] = model
        if backend:
            self.forward = _compiled(model, backend)

    def __call__(self, images: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """One step of the optimiser; the batch's mean loss before it, and how many answers were right.

        Raises TrainingFailed where not even two images fit into memory, or the network cannot be compiled.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        found, parts = fitting(partial(self._gradients, images, labels), len(images), self.parts)
        if parts > self.parts:
            self.parts = parts
            notify(_message(self.model, len(images), parts))
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


def _compiled(model: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
    """`model`, compiled at the first batch of each shape; it raises TrainingFailed where that fails.

    The code for a shape must not depend on which shapes came before, as a resumed training has seen fewer: none is dynamic.
    """
    from torch._dynamo.exc import TorchDynamoException

    torch.compiler.reset()

    def failed(error: Exception) -> TrainingFailed:
        reason = " ".join(str(error).split())[:200]
        return TrainingFailed(
            f"torch.compile's backend {backend!r} cannot compile the network here ({reason}); train where it can, or begin a new run with "
            "compile=never"
        )

    try:
        found = torch.compile(model, backend=backend, dynamic=False)
    except TorchDynamoException as error:
        raise failed(error) from error

    def forward(images: Tensor) -> Tensor:
        try:
            logits: Tensor = found(images)
        except TorchDynamoException as error:
            raise failed(error) from error
        return logits

    return forward


def _decayed(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Weight decay for matrices and filters alone; biases and batch-norm parameters are left to the data."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    free = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]


def _taught(teacher: nn.Module | None, device: torch.device) -> Callable[[Tensor], Tensor | None]:
    """Images (N, C, H, W) -> the teacher's logits (N, classes); None without one."""
    if teacher is None:
        return lambda images: None
    layout = to_memory_format(teacher.eval(), device)

    @torch.no_grad()
    def answer(images: Tensor) -> Tensor:
        logits: Tensor = teacher(images.contiguous(memory_format=layout))
        return logits.float() if logits.dtype == torch.bfloat16 else logits

    return answer


def _message(model: nn.Module, images: int, parts: int) -> str:
    """What a user has to know of batches in parts."""
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    but = f", but batch norm sees {images // parts} images at a time" if normed else ""
    return (
        f"a batch of {images} images does not fit into memory: it is computed in {parts} parts of {images // parts}; "
        f"their gradients add up to the same step{but}"
    )
