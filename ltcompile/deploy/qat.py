"""Fine-tune a network as int8 will compute it: filters and inputs of its layers are rounded on the way forward, and not on the way back.

    q(w) = s * clamp(round(w / s), -top, top),  s = max |w| / top, one for each filter        (convolutions, linear layers)
    q(x) = s * (clamp(round(x / s) + z, 0, 255) - z),  one s and z for each layer, from images

The gradient passes straight through where nothing was clamped (Jacob et al. 2018, arXiv:1712.05877). The weights that are trained stay
in float, and `export_onnx` sees the plain network again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import stream
from ltcompile.core.task import Metric, Task
from ltcompile.training import Epoch, pick_device, train

CHUNK = 64
LEAST_SCALE = 1e-12  # of a filter that is all zeros


def tuning(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe that a network was trained with, for `epochs` of fine-tuning at its fine-tuning rate.

    In fp32: bfloat16 would round the 256 steps of an activation once more.
    """
    return replace(recipe, epochs=epochs, warmup_epochs=0, precision="fp32", compile="never").fine_tuning()


def fine_tune(module: nn.Module, task: Task, images: Tensor, recipe: Recipe, seed: int, top: int) -> nn.Module:
    """A fine-tuned copy of a folded network, in eval mode on the CPU, as it was after the epoch that was best on validation images.

    Args:
        images: real ones (N, C, H, W), from which the ranges of activations are taken.
        top: the largest integer that a weight becomes.

    Raises:
        TrainingFailed: a loss is not finite.
    """
    tuned = copy.deepcopy(module)
    teacher = copy.deepcopy(module) if recipe.distill else None
    best = _Best(task.metric)
    with rounded(tuned, images, top):
        train(tuned, task, recipe, stream("int8 fine-tuning", seed), pick_device(), progress=best, teacher=teacher)
        tuned.load_state_dict(best.weights)
    return tuned.cpu().eval()


@contextmanager
def rounded(model: nn.Module, images: Tensor, top: int) -> Iterator[None]:
    """Inside it, `model` computes with rounded filters and inputs of its layers; its float weights are what is trained."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    ranges = _ranges(model, layers, images)
    hooks = [layer.register_forward_pre_hook(partial(_round_input, *_steps(*ranges[layer]))) for layer in layers if layer in ranges]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", RoundedFilters(top))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


class RoundedFilters(nn.Module):
    """Weights (filters, ...) -> the same, each filter in at most 2 * `top` + 1 evenly spaced values."""

    def __init__(self, top: int) -> None:
        super().__init__()
        self.top = top

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().abs().flatten(1).amax(1).clamp_min(LEAST_SCALE) / self.top
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -self.top, self.top)


class _Best:
    """Keeps the weights of the epoch that was best on validation images."""

    def __init__(self, metric: Metric) -> None:
        self.metric, self.worth, self.weights = metric, -math.inf, dict[str, Tensor]()

    def __call__(self, epoch: Epoch, state: dict[str, Any], /) -> None:
        if (worth := self.metric.worth(epoch.val_score)) > self.worth:
            self.worth, self.weights = worth, {name: value.clone() for name, value in state["model"].items()}


def _round_input(scale: float, zero: int, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.fake_quantize_per_tensor_affine(inputs[0], scale, zero, 0, 255), *inputs[1:]


def _steps(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of 256 steps from `low` to `high`, one of them at zero."""
    scale = max((high - low) / 255, LEAST_SCALE)
    return scale, min(max(round(-low / scale), 0), 255)


@torch.no_grad()
def _ranges(model: nn.Module, layers: Sequence[nn.Module], images: Tensor) -> dict[nn.Module, tuple[float, float]]:
    """The smallest and the largest input of each layer that runs, zero included."""
    found: dict[nn.Module, tuple[float, float]] = {}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = found.get(layer, (0.0, 0.0))
        found[layer] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        for chunk in images.split(CHUNK):
            model.eval()(chunk)
    finally:
        for hook in hooks:
            hook.remove()
    return found
