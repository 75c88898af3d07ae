"""Fine-tuning: weights stay, and train on at the schedule's last rate, a hundredth of the first (Renda et al. 2020: 0.001 after 0.1)."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.graph import cut
from ltcompile.rewind import Sources


def restart(sources: Sources, plan: PruningPlan, inner: PruningPlan) -> nn.Module:
    return cut(sources.trained, inner)


def recipe(usual: Recipe) -> Recipe:
    return replace(usual, lr=usual.lr * 0.01, schedule="constant", warmup_epochs=0)


def first_epoch(epoch: int) -> int:
    return 0
