"""What criteria look at besides weights, from a few training batches before a round's cut: gradients, curvature, activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import generator, stream
from ltcompile.core.task import Batch, Task, items
from ltcompile.graph._copy import copied
from ltcompile.graph.wrappers import unwrap
from ltcompile.prune import criteria
from ltcompile.prune.criteria import Evidence
from ltcompile.prune.evidence import COLLECT
from ltcompile.training import fitting, split, to_layout, to_memory_format

BATCHES = 8
GRADIENT_BATCH = 32  # items: the squares of smaller batches' gradients vary less around what single items say

Batches = Iterable[Batch]


def gather(criterion: str, model: nn.Module, task: Task, recipe: Recipe, seed: int, device: torch.device) -> Evidence:
    """What `criterion` needs to score a copy of `model` in eval mode, and no more. `seed` picks the training batches of `task`, and all
    chance.

    Raises:
        UnknownName: no such criterion. InvalidModel: its curvature is needed, and the network's logits are not finite.
    """
    evidence = Evidence(rng=generator(stream("random scores", seed)))
    if not criteria.needs(criterion):
        return evidence
    model = copied(unwrap(model)).eval()
    for parameter in model.parameters():  # what is not trained goes with its channel as well
        parameter.requires_grad_(parameter.is_floating_point())
    layout = to_memory_format(model, device)
    batch = min(recipe.batch, task.sizes["train"])

    def batches(parts: int) -> Batches:
        for whole in islice(task.batches("train", batch, device, recipe, stream("scoring batches", seed)), BATCHES):
            yield from split((to_layout(whole[0], layout), whole[1]), parts)

    def collected(kind: str, parts: int) -> object:
        if kind in COLLECT:
            return COLLECT[kind](model, (inputs for inputs, _ in batches(parts)), generator(stream("drawn labels", seed)))
        return loss_curvature(model, task, batches(parts), stream("drawn labels", seed))

    if "gradients" in criteria.needs(criterion):
        evidence.gradients = BatchGradients(model, task, recipe, stream("scoring batches", seed), device, layout)
    for kind in (kind for kind in criteria.needs(criterion) if kind != "gradients"):
        parts = -(-batch // GRADIENT_BATCH) if kind == "curvature" else 1
        found, _ = fitting(partial(collected, kind), batch, parts)  # all kinds are means, in however many parts
        setattr(evidence, kind, found)
    return evidence


@dataclass
class BatchGradients:
    """Parameter name -> gradient of the mean loss of a mini-batch, one mapping a mini-batch.

    Each is computed, by the network as it is then, when its turn comes: one set of gradients is in memory at a time.
    """

    model: nn.Module
    task: Task
    recipe: Recipe
    seed: int
    device: torch.device
    layout: torch.memory_format
    parts: int = 1

    @property
    def batch(self) -> int:
        return min(GRADIENT_BATCH, self.recipe.batch, self.task.sizes["train"])

    def __len__(self) -> int:
        return min(BATCHES * self.recipe.batch, self.task.sizes["train"]) // self.batch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for inputs, targets in islice(self.task.batches("train", self.batch, self.device, self.recipe, self.seed), len(self)):
            whole = to_layout(inputs, self.layout), targets
            found, self.parts = fitting(partial(loss_gradients, self.model, self.task, whole), items(whole), self.parts)
            yield found


def loss_gradients(model: nn.Module, task: Task, batch: Batch, parts: int = 1) -> dict[str, Tensor]:
    """Parameter name -> gradient of the task's mean loss; zeros where it does not depend on it. Computed in so many parts of the batch."""
    trained = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in trained.items()}
    with torch.enable_grad():
        for few in split(batch, parts):
            loss = task.loss(model, few).value * (items(few) / items(batch))
            found = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
            torch._foreach_add_(list(total.values()), found)
    return total


def loss_curvature(model: nn.Module, task: Task, batches: Batches, seed: int) -> dict[str, Tensor]:
    """Parameter name -> estimate of the diagonal of the Gauss-Newton matrix of the mean loss of all items, which is never negative.

    The Gauss-Newton-Bartlett estimate (Liu et al. 2023, arXiv:2305.14342): with targets drawn from the network's own predictions the gradients
    of items are independent with mean zero, so the square of their sum over a batch estimates the sum of their squares, without bias. That
    takes a network that computes each item by itself, as in eval mode. A task that draws no targets gives the empirical Fisher information of
    batches instead.

    Raises:
        InvalidModel: outputs are not finite.
    """
    parameters = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    values = list(parameters.values())
    diagonal, seen = [torch.zeros_like(p) for p in values], 0
    rng = generator(seed)
    for batch in batches:
        for loss in task.curvature_losses(model, batch, rng):
            gradients = torch.autograd.grad(loss, values, retain_graph=True, materialize_grads=True)
            torch._foreach_addcmul_(diagonal, gradients, gradients)
            seen += items(batch)
    torch._foreach_div_(diagonal, seen)
    return dict(zip(parameters, diagonal, strict=True))
