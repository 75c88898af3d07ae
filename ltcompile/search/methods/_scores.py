"""Scores that choose among weights which are never trained: what edge-popup and multi-prize tickets have in common.

    kept = the round(share * n) weights of a layer with the largest |score|
    d loss / d score = d loss / d weight * w0 * sign(score)                      (straight through the choice)

Scores start uniformly as weights of torch's linear layers do (Kaiming, a = sqrt(5)). The frozen w0 are Kaiming normal, divided by
sqrt(share), so that what is left of a layer keeps the variance of its inputs (`init: kaiming_normal`, `scale_fan: True` in the code of
both papers). Biases are zero, and scales and shifts of norms one and zero, as the papers have none; all else that a network may hold stays
as it is. Only scores are trained.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import generator
from ltcompile.search.methods._layers import Choice, checked_layers

_AFFINE = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
PAPER_BATCH = 128


class Scored(Choice):
    """Frozen weights -> the effective ones of those with the best scores, zeros elsewhere."""

    def __init__(self, weight: Tensor, share: float, rng: torch.Generator) -> None:
        super().__init__()
        scores = torch.empty(weight.shape, dtype=weight.dtype)
        nn.init.kaiming_uniform_(scores, a=math.sqrt(5), generator=rng)
        self.scores = nn.Parameter(scores.to(weight.device))
        self.count = max(1, round(share * scores.numel()))

    def forward(self, weight: Tensor) -> Tensor:
        magnitude = self.scores.abs()
        through = weight * (magnitude - magnitude.detach())  # zero to the bit, with the gradient that the choice has not
        return self.effective(weight, self.mask()) + through

    def effective(self, weight: Tensor, kept: Tensor) -> Tensor:
        """The weights that the layer computes with."""
        raise NotImplementedError

    def mask(self) -> Tensor:
        flat = self.scores.detach().abs().flatten()
        best = flat.topk(self.count, sorted=False).indices
        return torch.zeros_like(flat, dtype=torch.bool).index_fill(0, best, True).view(self.scores.shape)

    def kept(self) -> int:
        return self.count


@torch.no_grad()
def attach(model: nn.Module, share: float, seed: int, scored: type[Scored]) -> None:
    """Draw frozen weights, and scores that choose among them, for all layers of `model`. Raises InvalidModel."""
    rng = generator(seed)
    found = checked_layers(model)
    model.requires_grad_(False)
    for norm in (m for m in model.modules() if isinstance(m, _AFFINE)):
        _fill(norm, 1.0)
    for layer in found.values():
        drawn = torch.empty(layer.weight.shape, dtype=layer.weight.dtype)
        nn.init.kaiming_normal_(drawn, nonlinearity="relu", generator=rng)
        _fill(layer, drawn / math.sqrt(share))
        parametrize.register_parametrization(layer, "weight", scored(layer.weight, share, rng))


def _fill(module: nn.Module, weight: Tensor | float) -> None:
    """A module's weight, and zeros for its bias, where it has them."""
    own = dict(module.named_parameters(recurse=False))
    if "weight" in own:
        own["weight"].copy_(torch.as_tensor(weight))
    if "bias" in own:
        own["bias"].zero_()


def recipe(usual: Recipe) -> Recipe:
    """Both papers' for Conv-2 to Conv-8 on CIFAR-10: rate 0.1 at a batch of 128, falling as a cosine, and weight decay 1e-4."""
    return replace(usual, lr=0.1 * usual.batch / PAPER_BATCH, schedule="cosine", momentum=0.9, weight_decay=1e-4)
