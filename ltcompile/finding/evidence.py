"""What gradient criteria look at: the training loss, differentiated before a round's cut."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.data import Split
from ltcompile.graph import cut
from ltcompile.train import lay_out

BATCHES = 8


def loss_gradients(model: nn.Module, split: Split, recipe: Recipe, seed: int, device: torch.device) -> dict[str, Tensor]:
    """Parameter name -> gradient of the summed mean losses of a few training batches, in eval mode."""
    layout = lay_out(model.eval(), device)
    model.zero_grad(set_to_none=True)
    batches = split.batches(min(recipe.batch, len(split)), device, recipe, seed)
    for _, (images, labels) in zip(range(BATCHES), batches, strict=False):
        F.cross_entropy(model(images.contiguous(memory_format=layout)), labels).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


def sliced(gradients: dict[str, Tensor], model: nn.Module, plan: PruningPlan) -> dict[str, Tensor]:
    """Gradients of the masked network in the cut one's coordinates."""
    holder = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in holder.named_parameters():
            parameter.copy_(gradients[name])
    return dict(cut(holder, plan).named_parameters())
