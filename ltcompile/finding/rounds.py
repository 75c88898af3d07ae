"""The levels of one seed: train, score, cut, rewind, train again. Between rounds the network is really cut."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from ltcompile import criteria, rewind
from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained
from ltcompile.finding.asked import Asked
from ltcompile.finding.budget import met
from ltcompile.finding.choose import Ranking
from ltcompile.finding.evidence import gather
from ltcompile.finding.run import RunFolder
from ltcompile.finding.target import Meter, meet
from ltcompile.finding.units import Unit, Units
from ltcompile.graph import cut, mask


class Rounds:
    """The dense network, its tickets and their controls, seed by seed."""

    def __init__(self, asked: Asked, folder: RunFolder, units: Units) -> None:
        self.asked, self.config, self.folder, self.units = asked, asked.config, folder, units

    def descend(self, seed: int) -> list[Trained]:
        """The dense network and the ticket of every level."""
        plan = self.asked.whole
        model, row = self.units.run(Unit(seed, "dense", 0), lambda: self.asked.initial(seed), plan, self.asked.recipe)
        rows = [row]
        for level, share in enumerate(self.config.shares, start=1):
            inner, plan = self._prune(seed, level, model, plan, share)
            model, row = self._ticket(seed, level, model, plan, inner)
            rows.append(row)
        return rows

    def _prune(self, seed: int, level: int, model: nn.Module, plan: PruningPlan, share: float) -> tuple[PruningPlan, PruningPlan]:
        """The cut on the network as it stands (in its own coordinates), and the plan on the original that it leads to."""
        remaining = plan.remaining()
        if self.folder.plan(seed, level).exists():
            whole = self.folder.load_plan(seed, level)
            inner = {name: tuple(plan.kept[name].index(c) for c in kept) for name, kept in whole.kept.items()}
            return PruningPlan(remaining, inner), whole
        dice = torch.Generator().manual_seed(seed * 1009 + level)
        small = cut(model, plan) if self.config.masked else model
        evidence = gather(self.config.criterion, small, self.asked.data.train, self.asked.recipe, seed, self.asked.device, dice)
        scores = criteria.score(self.config.criterion, remaining, small, evidence, self.config.group_reduction)
        cut_now = self._choose(self.asked.ranking(remaining, scores, level), small, share)
        whole = plan.then(cut_now)
        self.folder.save_plan(seed, level, whole)
        return cut_now, whole

    def _choose(self, ranking: Ranking, small: nn.Module, share: float) -> PruningPlan:
        """The cut of `small` by an entry of the config's shares. On the way to a target, a level goes as far as it can."""
        target = self.config.target
        if target is None:
            return ranking.plan(ranking.steps(share))
        if target.measure == "time":
            assert self.asked.profile is not None, "asked for with the target"
            return met(small, ranking, self.asked.profile, share * self.asked.profile.dense_ms, self.asked.measured)
        meter = Meter(small, self.asked.example)
        return meet(ranking, lambda found: target.of(meter.left(found)), share * target.of(self.asked.dense_size))

    def _ticket(self, seed: int, level: int, trained: nn.Module, plan: PruningPlan, inner: PruningPlan) -> tuple[nn.Module, Trained]:
        rewinding, whole = self.asked.rewinding, self.asked.whole
        sources = rewind.Sources(trained, lambda: self.units.early(seed), lambda: self.asked.fresh(seed + level))

        def restarted(plan: PruningPlan, inner: PruningPlan) -> nn.Module:
            network: nn.Module = rewinding.restart(sources, plan, inner)
            return network

        def start() -> nn.Module:
            """The masked search restarts the whole network, and zeroes what the fast one cuts."""
            return mask(restarted(whole, whole), plan) if self.config.masked else restarted(plan, inner)

        recipe, first = rewinding.recipe(self.asked.recipe), rewinding.first_epoch(self.config.rewind_epoch)
        return self.units.run(Unit(seed, "ticket", level), start, plan, recipe, first)

    def controls(self, seed: int, level: int, rows: list[Trained]) -> list[Trained]:
        """Both controls have the ticket's whole training budget in one schedule: the random one its epochs, the dense one its arithmetic."""
        lineage = [r for r in rows if r.seed == seed and r.arm in ("dense", "ticket") and r.level <= level]
        random, dense = Unit(seed, "random", level), Unit(seed, "dense_budget", level)
        plan, epochs = self.units.plan(random), sum(r.epochs for r in lineage)
        equal = math.ceil(sum(r.epochs * r.macs for r in lineage) / lineage[0].macs)
        arms = (
            self.units.run(random, lambda: cut(self.asked.fresh(seed), plan), plan, _stretched(self.asked.recipe, epochs)),
            self.units.run(dense, lambda: self.asked.initial(seed), self.asked.whole, _stretched(self.asked.recipe, equal)),
        )
        return [row for _, row in arms]


def _stretched(recipe: Recipe, epochs: int) -> Recipe:
    """The same schedule over another number of epochs, at least one."""
    epochs = max(1, epochs)
    return replace(recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs - 1))
