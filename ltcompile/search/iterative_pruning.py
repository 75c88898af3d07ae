"""The levels of one seed: train, score, cut, rewind, train again. Between rounds the network is really cut."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from ltcompile.core.arm import Arm
from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained
from ltcompile.graph import cut, dropped_weights, mask
from ltcompile.graph.surgeon import zero_
from ltcompile.prune import criteria
from ltcompile.prune.budget import plan_for_latency
from ltcompile.prune.choose import Ranking
from ltcompile.prune.criteria import Evidence
from ltcompile.prune.limits import Limits
from ltcompile.prune.target import SizeCounter, plan_for_size
from ltcompile.search import rewind
from ltcompile.search.arm_runner import ArmRunner
from ltcompile.search.evidence import gather
from ltcompile.search.masks import layer_rates, prune_mask
from ltcompile.search.selection import Selection


class IterativePruning:
    """The dense network, its tickets and their controls, seed by seed."""

    def __init__(self, runner: ArmRunner) -> None:
        self.runner, self.prepared, self.job, self.config = runner, runner.prepared, runner.job, runner.job.config

    def run_levels(self, seed: int) -> list[Trained]:
        """The dense network and the ticket of every level."""
        selection = self.prepared.everything
        model, row = self.runner.run(Arm(seed, "dense", 0), lambda: self.job.initial(seed), selection, self.job.recipe)
        rows = [row]
        for level, share in enumerate(self.config.shares, start=1):
            model, selection, row = self._level(seed, level, model, selection, share)
            rows.append(row)
        return rows

    def _level(self, seed: int, level: int, model: nn.Module, selection: Selection, share: float) -> tuple[nn.Module, Selection, Trained]:
        """The next ticket, after the trained `model` to which `selection` led: network, what it keeps, row."""
        inner, selection = self._prune(seed, level, model, selection, share)
        model, row = self._ticket(seed, level, model, selection, inner)
        return model, selection, row

    def _prune(self, seed: int, level: int, model: nn.Module, before: Selection, share: float) -> tuple[PruningPlan, Selection]:
        """The cut on the network as it stands (in its own coordinates), and what it leaves of the original."""
        folder, remaining = self.runner.folder, before.plan.remaining()
        if folder.plan(seed, level).exists():
            found = Selection(*folder.load_selection(seed, level, before.mask is not None))
            inner = {name: tuple(before.plan.kept[name].index(c) for c in channels) for name, channels in found.plan.kept.items()}
            return PruningPlan(remaining, inner), found
        inner_plan = self._cut_now(seed, level, model, before, share) if self.config.prune != "weights" else PruningPlan(remaining)
        plan = before.plan.then(inner_plan)
        found = Selection(plan, self._next_mask(seed, level, model, before.mask, plan, share) if before.mask else None)
        folder.save_selection(seed, level, found.plan, found.mask)
        return inner_plan, found

    def _cut_now(self, seed: int, level: int, model: nn.Module, selection: Selection, share: float) -> PruningPlan:
        """The filters that a level drops of the network as it stands."""
        remaining = selection.plan.remaining()
        small = cut(model, selection.plan) if self._keeps_zeros else model
        evidence = self._gather(self.config.criterion, seed, level, small)
        scores = criteria.score(self.config.criterion, remaining, small, evidence, self.config.group_reduction)
        return self._choose(self.prepared.ranking(remaining, scores, level), small, share)

    def _gather(self, criterion: str, seed: int, level: int, model: nn.Module) -> Evidence:
        """What the criterion looks at in the trained `model` to make the ticket of a level."""
        number = Arm(seed, "ticket", level).stream("scoring")
        return gather(criterion, model, self.job.task, self.job.recipe, number, self.job.device)

    def _next_mask(self, seed: int, level: int, model: nn.Module, before: WeightMask, plan: PruningPlan, share: float) -> WeightMask:
        """The mask of the next level; weights that go with the filters of `plan` count as gone."""
        if self.job.mask is not None:
            return self.job.mask
        gone = dropped_weights(model, plan)
        left = WeightMask({name: kept & ~gone[name].cpu() if name in gone else kept for name, kept in before.kept.items()})
        criterion = self.config.criterion if self.config.prune == "weights" else "l1"
        evidence = self._gather(criterion, seed, level, model)
        scores = criteria.score_weights(criterion, self.prepared.maskable(model), evidence)
        limits = self.config if self.config.prune == "weights" else Limits()
        rates = layer_rates(left, limits, self.prepared.traced, share, self.config.levels)
        return prune_mask(left, scores, rates, self.config.scope)

    @property
    def _keeps_zeros(self) -> bool:
        """Whether tickets are unpruned networks with zeros."""
        return self.config.masked or self.config.prune != "filters"

    def _choose(self, ranking: Ranking, small: nn.Module, share: float) -> PruningPlan:
        """The cut of `small` by an entry of the config's shares. On the way to a target, a level goes as far as it can."""
        target = self.config.target
        if target is None:
            return ranking.plan(ranking.steps(share))
        if target.profiled:
            assert self.job.profile is not None, "checked by SearchJob"
            return plan_for_latency(small, ranking, self.job.profile, share, self.job.measured)
        size_counter = SizeCounter(small, self.job.example)
        return plan_for_size(ranking, lambda found: target.of(size_counter.left(found)), share * target.of(self.prepared.dense_size))

    def _ticket(self, seed: int, level: int, trained: nn.Module, selection: Selection, inner: PruningPlan) -> tuple[nn.Module, Trained]:
        rewinding, identity = self.job.rewinding, self.prepared.everything.plan
        arm = Arm(seed, "ticket", level)
        sources = rewind.Sources(trained, lambda: self.runner.early(seed), lambda: self.job.fresh(arm.stream("fresh weights")))

        def restarted(plan: PruningPlan, inner: PruningPlan) -> nn.Module:
            network: nn.Module = rewinding.restart(sources, plan, inner)
            return network

        def start() -> nn.Module:
            """The masked search restarts the unpruned network, and zeroes what the fast one cuts."""
            return self._zeroed(restarted(identity, identity), selection) if self._keeps_zeros else restarted(selection.plan, inner)

        recipe, first = rewinding.recipe(self.job.recipe), rewinding.first_epoch(self.config.rewind_epoch)
        return self.runner.run(arm, start, selection, recipe, first)

    def _zeroed(self, network: nn.Module, selection: Selection) -> nn.Module:
        """`network` with zeros where `selection` drops; norms that mix channels leave dropped filters out."""
        found = mask(network, selection.plan)
        zero_(found, selection.dropped(found))
        return found

    def run_controls(self, seed: int, level: int, rows: list[Trained]) -> list[Trained]:
        """Both controls have the ticket's whole training budget in one schedule: the random one its epochs, the dense one its arithmetic."""
        lineage = [r for r in rows if r.seed == seed and r.arm in ("dense", "ticket") and r.level <= level]
        random, dense = Arm(seed, "random", level), Arm(seed, "dense_budget", level)
        epochs = sum(r.epochs for r in lineage)
        equal = math.ceil(sum(r.epochs * r.macs for r in lineage) / lineage[0].macs)
        arms = (
            self._fresh(random, _stretched(self.job.recipe, epochs)),
            self.runner.run(dense, lambda: self.job.initial(seed), self.prepared.everything, _stretched(self.job.recipe, equal)),
        )
        return [row for _, row in arms]

    def run_curve(self, seed: int) -> list[Trained]:
        """At every level, what trains by the ticket's own recipe: fresh weights; and of masks, shuffled ones on its first weights."""
        rows = []
        for level in range(1, self.config.levels + 1):
            rows.append(self._fresh(Arm(seed, "reinit", level), self.job.recipe)[1])
            if self.runner.selection(Arm(seed, "ticket", level)).mask is not None:
                rows.append(self._shuffled(Arm(seed, "shuffled", level)))
        return rows

    def _fresh(self, arm: Arm, recipe: Recipe) -> tuple[nn.Module, Trained]:
        """The ticket's architecture, or its mask, on other first weights."""
        selection = self.runner.selection(arm)

        def start() -> nn.Module:
            network = self.job.fresh(arm.stream("fresh weights"))
            return self._zeroed(network, selection) if selection.mask else cut(network, selection.plan)

        return self.runner.run(arm, start, selection, recipe)

    def _shuffled(self, arm: Arm) -> Trained:
        selection, first = self.runner.selection(arm), self.job.rewinding.first_epoch(self.config.rewind_epoch)
        return self.runner.run(arm, lambda: self._zeroed(self.runner.early(arm.seed), selection), selection, self.job.recipe, first)[1]


def _stretched(recipe: Recipe, epochs: int) -> Recipe:
    """The same schedule over another number of epochs, at least one."""
    epochs = max(1, epochs)
    return replace(recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs - 1))
