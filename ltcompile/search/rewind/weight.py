"""Weight rewinding (Frankle & Carbin 2018; Frankle et al. 2019 for epochs above 0): surviving weights go back to their values
after an early epoch of the dense training (0: the initial values), and the schedule restarts from there."""

from __future__ import annotations

from torch import nn

from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.graph import cut
from ltcompile.search.rewind import Sources


def restart(sources: Sources, plan: PruningPlan, inner: PruningPlan) -> nn.Module:
    return cut(sources.early(), plan)


def recipe(usual: Recipe) -> Recipe:
    return usual


def first_epoch(epoch: int) -> int:
    return epoch
