"""Fine-tuning: weights stay, and train on at the schedule's last rate, a hundredth of the first (Renda et al. 2020: 0.001 after 0.1).

A recipe that begins low, as for given weights, is not divided below that 0.001: its networks would hardly move.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.graph import cut
from ltcompile.search.rewind import Sources

LEAST_RATE = 0.001


def restart(sources: Sources, plan: PruningPlan, inner: PruningPlan) -> nn.Module:
    return cut(sources.trained, inner)


def recipe(usual: Recipe) -> Recipe:
    return replace(usual, lr=max(usual.lr * 0.01, min(usual.lr, LEAST_RATE)), schedule="constant", warmup_epochs=0)


def first_epoch(epoch: int) -> int:
    return 0
