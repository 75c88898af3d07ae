"""The levels of one seed: train, score, cut, rewind, train again. Between rounds the network is really cut."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained
from ltcompile.graph import cut, mask, zeros
from ltcompile.graph.surgeon import zero_
from ltcompile.prune import criteria
from ltcompile.prune.budget import met
from ltcompile.prune.choose import Ranking
from ltcompile.prune.criteria import Evidence
from ltcompile.prune.limits import Limits
from ltcompile.prune.target import Meter, meet
from ltcompile.search import rewind
from ltcompile.search.asked import Asked
from ltcompile.search.evidence import gather
from ltcompile.search.kept import Kept
from ltcompile.search.masks import narrowed, rates
from ltcompile.search.run import RunFolder
from ltcompile.search.units import Unit, Units


class Rounds:
    """The dense network, its tickets and their controls, seed by seed."""

    def __init__(self, asked: Asked, folder: RunFolder, units: Units) -> None:
        self.asked, self.config, self.folder, self.units = asked, asked.config, folder, units

    def descend(self, seed: int) -> list[Trained]:
        """The dense network and the ticket of every level."""
        kept = self.asked.whole
        model, row = self.units.run(Unit(seed, "dense", 0), lambda: self.asked.initial(seed), kept, self.asked.recipe)
        rows = [row]
        for level, share in enumerate(self.config.shares, start=1):
            model, kept, row = self._level(seed, level, model, kept, share)
            rows.append(row)
        return rows

    def _level(self, seed: int, level: int, model: nn.Module, kept: Kept, share: float) -> tuple[nn.Module, Kept, Trained]:
        """The next ticket, after the trained `model` that `kept` is left of: network, what it keeps, row."""
        inner, kept = self._prune(seed, level, model, kept, share)
        model, row = self._ticket(seed, level, model, kept, inner)
        return model, kept, row

    def _prune(self, seed: int, level: int, model: nn.Module, kept: Kept, share: float) -> tuple[PruningPlan, Kept]:
        """The cut on the network as it stands (in its own coordinates), and what it leaves of the original."""
        remaining = kept.plan.remaining()
        if self.folder.plan(seed, level).exists():
            found = self.folder.load_kept(seed, level, kept.mask is not None)
            inner = {name: tuple(kept.plan.kept[name].index(c) for c in channels) for name, channels in found.plan.kept.items()}
            return PruningPlan(remaining, inner), found
        inner_plan = self._cut_now(seed, level, model, kept, share) if self.config.prune != "weights" else PruningPlan(remaining)
        plan = kept.plan.then(inner_plan)
        found = Kept(plan, self._narrowed(seed, level, model, kept.mask, plan, share) if kept.mask else None)
        self.folder.save_kept(seed, level, found)
        return inner_plan, found

    def _cut_now(self, seed: int, level: int, model: nn.Module, kept: Kept, share: float) -> PruningPlan:
        """The filters that a level drops of the network as it stands."""
        remaining = kept.plan.remaining()
        small = cut(model, kept.plan) if self._with_zeros else model
        evidence = self._gather(self.config.criterion, seed, level, small)
        scores = criteria.score(self.config.criterion, remaining, small, evidence, self.config.group_reduction)
        return self._choose(self.asked.ranking(remaining, scores, level), small, share)

    def _gather(self, criterion: str, seed: int, level: int, model: nn.Module) -> Evidence:
        """What the criterion looks at in the trained `model` to make the ticket of a level."""
        number = Unit(seed, "ticket", level).stream("scoring")
        return gather(criterion, model, self.asked.data.train, self.asked.recipe, number, self.asked.device)

    def _narrowed(self, seed: int, level: int, model: nn.Module, before: WeightMask, plan: PruningPlan, share: float) -> WeightMask:
        """The mask of the next level; weights that go with the filters of `plan` count as gone."""
        if self.asked.given is not None:
            return self.asked.given
        gone = zeros(model, plan)
        left = WeightMask({name: kept & ~gone[name].cpu() if name in gone else kept for name, kept in before.kept.items()})
        criterion = self.config.criterion if self.config.prune == "weights" else "l1"
        evidence = self._gather(criterion, seed, level, model)
        scores = criteria.score_weights(criterion, self.asked.maskable(model), evidence)
        limits = self.config if self.config.prune == "weights" else Limits()
        return narrowed(left, scores, rates(left, limits, self.asked.traced, share, self.config.levels), self.config.scope)

    @property
    def _with_zeros(self) -> bool:
        """Whether tickets are whole networks with zeros."""
        return self.config.masked or self.config.prune != "filters"

    def _choose(self, ranking: Ranking, small: nn.Module, share: float) -> PruningPlan:
        """The cut of `small` by an entry of the config's shares. On the way to a target, a level goes as far as it can."""
        target = self.config.target
        if target is None:
            return ranking.plan(ranking.steps(share))
        if target.profiled:
            assert self.asked.profile is not None, "asked for with the target"
            return met(small, ranking, self.asked.profile, share, self.asked.measured)
        meter = Meter(small, self.asked.example)
        return meet(ranking, lambda found: target.of(meter.left(found)), share * target.of(self.asked.dense_size))

    def _ticket(self, seed: int, level: int, trained: nn.Module, kept: Kept, inner: PruningPlan) -> tuple[nn.Module, Trained]:
        rewinding, whole = self.asked.rewinding, self.asked.whole.plan
        unit = Unit(seed, "ticket", level)
        sources = rewind.Sources(trained, lambda: self.units.early(seed), lambda: self.asked.fresh(unit.stream("fresh weights")))

        def restarted(plan: PruningPlan, inner: PruningPlan) -> nn.Module:
            network: nn.Module = rewinding.restart(sources, plan, inner)
            return network

        def start() -> nn.Module:
            """The masked search restarts the whole network, and zeroes what the fast one cuts."""
            return self._masked(restarted(whole, whole), kept) if self._with_zeros else restarted(kept.plan, inner)

        recipe, first = rewinding.recipe(self.asked.recipe), rewinding.first_epoch(self.config.rewind_epoch)
        return self.units.run(unit, start, kept, recipe, first)

    def _masked(self, network: nn.Module, kept: Kept) -> nn.Module:
        """`network` with zeros where `kept` drops; norms that mix channels leave dropped filters out."""
        found = mask(network, kept.plan)
        zero_(found, kept.zeros(found))
        return found

    def controls(self, seed: int, level: int, rows: list[Trained]) -> list[Trained]:
        """Both controls have the ticket's whole training budget in one schedule: the random one its epochs, the dense one its arithmetic."""
        lineage = [r for r in rows if r.seed == seed and r.arm in ("dense", "ticket") and r.level <= level]
        random, dense = Unit(seed, "random", level), Unit(seed, "dense_budget", level)
        epochs = sum(r.epochs for r in lineage)
        equal = math.ceil(sum(r.epochs * r.macs for r in lineage) / lineage[0].macs)
        arms = (
            self._fresh(random, _stretched(self.asked.recipe, epochs)),
            self.units.run(dense, lambda: self.asked.initial(seed), self.asked.whole, _stretched(self.asked.recipe, equal)),
        )
        return [row for _, row in arms]

    def curve(self, seed: int) -> list[Trained]:
        """At every level, what trains by the recipe itself, as the ticket did: fresh weights; and of masks, shuffled ones on its first weights."""
        rows = []
        for level in range(1, self.config.levels + 1):
            rows.append(self._fresh(Unit(seed, "reinit", level), self.asked.recipe)[1])
            if self.units.kept(Unit(seed, "ticket", level)).mask is not None:
                rows.append(self._shuffled(Unit(seed, "shuffled", level)))
        return rows

    def _fresh(self, unit: Unit, recipe: Recipe) -> tuple[nn.Module, Trained]:
        """The ticket's architecture, or its mask, on other first weights."""
        kept = self.units.kept(unit)

        def start() -> nn.Module:
            network = self.asked.fresh(unit.stream("fresh weights"))
            return self._masked(network, kept) if kept.mask else cut(network, kept.plan)

        return self.units.run(unit, start, kept, recipe)

    def _shuffled(self, unit: Unit) -> Trained:
        kept, first = self.units.kept(unit), self.asked.rewinding.first_epoch(self.config.rewind_epoch)
        return self.units.run(unit, lambda: self._masked(self.units.early(unit.seed), kept), kept, self.asked.recipe, first)[1]


def _stretched(recipe: Recipe, epochs: int) -> Recipe:
    """The same schedule over another number of epochs, at least one."""
    epochs = max(1, epochs)
    return replace(recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs - 1))
