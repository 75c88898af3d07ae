"""The arms of a search: train, score, cut, rewind, train again. Between rounds the network is really cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import nn

from ltcompile import ranks
from ltcompile.core.arm import Arm
from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import Branch, PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained
from ltcompile.graph import cut, dropped_weights, mask
from ltcompile.graph.surgeon import zero_
from ltcompile.prune import criteria
from ltcompile.prune.budget import RelativeTimer, plan_for_latency
from ltcompile.prune.choose import Ranking
from ltcompile.prune.criteria import Evidence
from ltcompile.prune.depth import DepthSearch, cost_of, ratio_left, removable, without
from ltcompile.prune.limits import Limits
from ltcompile.prune.target import SizeCounter, plan_for_size
from ltcompile.search import methods, rewind
from ltcompile.search.arm_runner import ArmRunner, Choice
from ltcompile.search.evidence import gather
from ltcompile.search.masks import layer_rates, prune_mask
from ltcompile.search.selection import Selection

DEPTH_BATCHES = 8  # that say what the outputs lose with a branch


class IterativePruning:
    """Trains dense networks, tickets and their controls, each from what finished arms left in the folder."""

    def __init__(self, runner: ArmRunner) -> None:
        self.runner, self.prepared, self.job, self.config = runner, runner.prepared, runner.job, runner.job.config

    def train(self, arm: Arm) -> None:
        """Train an arm whose predecessors are finished. Raises InvalidFile, TrainingFailed."""
        job, recipe = self.job, self.job.recipe
        match arm.kind:
            case "dense":
                self.runner.run(arm, lambda: job.initial(arm.seed), self.prepared.everything, recipe)
            case "ticket":
                self._ticket(arm, recipe)
            case "dense_budget":
                recipe = _stretched(recipe, budget_epochs(arm, self.runner.row))
                self.runner.run(arm, lambda: job.initial(arm.seed), self.prepared.everything, recipe)
            case "random":
                self._fresh(arm, _stretched(recipe, budget_epochs(arm, self.runner.row)))
            case "reinit":
                self._fresh(arm, recipe)
            case "shuffled":
                self._shuffled(arm)

    def _before(self, arm: Arm) -> tuple[Selection, nn.Module]:
        """What the arm before a ticket kept, and its trained network."""
        before = Arm(arm.seed, "ticket" if arm.level > 1 else "dense", arm.level - 1)
        return self.runner.selection(before), self.runner.trained(before).to(self.job.device)

    def _prune(self, arm: Arm, model: nn.Module, before: Selection) -> tuple[PruningPlan, Selection]:
        """The cut of a ticket on the network as it stands (in its own coordinates), and what it leaves of the original."""
        folder, remaining, place = self.runner.folder, before.plan.remaining(), (arm.seed, arm.level)
        with ranks.first_alone():
            if not folder.plan(*place).exists():
                share = self.config.shares[arm.level - 1]
                inner = self._cut_now(*place, model, before, share) if self.config.prune != "weights" else PruningPlan(remaining)
                plan = before.plan.then(inner)
                mask = self._next_mask(*place, model, before.mask, plan, share) if before.mask else None
                folder.save_selection(*place, plan, mask)
        found = Selection(*folder.load_selection(*place, before.mask is not None))  # of several processes, the first has written it
        kept = {g.name: tuple(before.plan.kept[g.name].index(c) for c in found.plan.kept[g.name]) for g in remaining}
        return PruningPlan(remaining, kept, found.plan.removed_branches[len(before.plan.removed_branches) :]), found

    def _cut_now(self, seed: int, level: int, model: nn.Module, selection: Selection, share: float) -> PruningPlan:
        """The filters, and with `depth` the branches, that a level drops of the network as it stands."""
        config, groups = self.config, selection.plan.remaining()
        small = cut(model, selection.plan) if self._keeps_zeros else model
        evidence = self._gather(config.criterion, seed, level, small)
        draws = evidence.rng.get_state()

        def attempt(removed: tuple[Branch, ...], timer: RelativeTimer | None = None) -> PruningPlan:
            first, network, left = without(small, groups, removed)
            evidence.rng.set_state(draws)  # a second ranking draws the same scores
            scores = criteria.score(config.criterion, left, network, evidence, config.group_reduction, config.normalize)
            here = ratio_left(share, first) if removed and config.target is None else share
            found = self._choose(self.prepared.ranking(left, scores, level), network, here, timer)
            return first.then(found) if removed else found

        removed: tuple[Branch, ...] = ()
        if config.depth:
            may_go, _ = removable(small, self.job.example, config)  # none, where earlier levels removed all
            cost = cost_of(config.target, self.job.profile, SizeCounter(small, self.job.example), groups)
            removed = DepthSearch(small, may_go, self._unlabelled()).best(attempt, cost).removed_branches
        return attempt(removed, None if self.job.by_tables else self.job.measured)

    def _unlabelled(self) -> list[Any]:
        """The inputs of the first training batches, as they are."""
        size = min(self.job.recipe.batch, self.job.task.sizes["train"])
        batches = self.job.task.batches("train", size, self.job.device)
        return [inputs for inputs, _ in islice(batches, min(DEPTH_BATCHES, self.job.task.sizes["train"] // size))]

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

    def _choose(self, ranking: Ranking, small: nn.Module, share: float, timer: RelativeTimer | None) -> PruningPlan:
        """The cut of `small` by an entry of the config's shares. On the way to a target, a level goes as far as it can."""
        target = self.config.target
        if target is None:
            return ranking.plan(ranking.steps(share))
        if target.profiled:
            assert self.job.profile is not None, "checked by SearchJob"
            return plan_for_latency(small, ranking, self.job.profile, share, timer)
        size_counter = SizeCounter(small, self.job.example)
        return plan_for_size(ranking, lambda found: target.of(size_counter.left(found)), share * target.of(self.prepared.dense_size))

    def _ticket(self, arm: Arm, recipe: Recipe) -> None:
        rewinding, identity = self.job.rewinding, self.prepared.everything.plan
        before, trained = self._before(arm)
        inner, selection = self._prune(arm, trained, before)
        sources = self._sources(arm, trained)

        def restarted(plan: PruningPlan, inner: PruningPlan) -> nn.Module:
            network: nn.Module = rewinding.restart(sources, plan, inner)
            return network

        def start() -> nn.Module:
            """The masked search restarts the unpruned network, and zeroes what the fast one cuts."""
            return self._zeroed(restarted(identity, identity), selection) if self._keeps_zeros else restarted(selection.plan, inner)

        self.runner.run(arm, start, selection, rewinding.recipe(recipe), rewinding.first_epoch(self.config.rewind_epoch))

    def _sources(self, arm: Arm, trained: nn.Module) -> rewind.Sources:
        """Where the weights of a ticket can come from besides the network `trained` before it."""
        return rewind.Sources(trained, lambda: self.runner.early(arm.seed), lambda: self.job.fresh(arm.stream("fresh weights")))

    def _zeroed(self, network: nn.Module, selection: Selection) -> nn.Module:
        """`network` with zeros where `selection` drops; norms that mix channels leave dropped filters out."""
        found = mask(network, selection.plan)
        zero_(found, selection.dropped(found))
        return found

    def _fresh(self, arm: Arm, recipe: Recipe) -> None:
        """The ticket's architecture, or its mask, on other first weights."""
        selection = self.runner.selection(arm)

        def start() -> nn.Module:
            network = self.job.fresh(arm.stream("fresh weights"))
            return self._zeroed(network, selection) if selection.mask else cut(network, selection.plan)

        self.runner.run(arm, start, selection, recipe)

    def _shuffled(self, arm: Arm) -> None:
        selection, first = self.runner.selection(arm), self.job.rewinding.first_epoch(self.config.rewind_epoch)
        self.runner.run(arm, lambda: self._zeroed(self.runner.early(arm.seed), selection), selection, self.job.recipe, first)


class ScoredMasks(IterativePruning):
    """The levels of a method that chooses while it trains: each keeps a share of the unpruned network's weights, or coordinates in a basis."""

    def _ticket(self, arm: Arm, recipe: Recipe) -> None:
        rewinding, everything = self.job.rewinding, self.prepared.everything
        _, trained = self._before(arm)
        sources = self._sources(arm, trained)

        def start() -> nn.Module:
            if not methods.iterative(self.config.method):
                return self.job.initial(arm.seed)
            network: nn.Module = rewinding.restart(sources, everything.plan, everything.plan)
            return network

        recipe = methods.recipe(self.config.method, rewinding.recipe(recipe))
        first = rewinding.first_epoch(self.config.rewind_epoch)
        self.runner.run(arm, start, everything, recipe, first, self._choice(arm.level, trained))

    def _choice(self, level: int, before: nn.Module) -> Choice:
        """What is kept at a level; `before` is the network of the level before it, for methods that look at one."""
        remaining = math.prod(1 - share for share in self.config.shares[:level])
        return Choice(remaining, before if methods.iterative(self.config.method) else None)

    def _fresh(self, arm: Arm, recipe: Recipe) -> None:
        """With a mask, as in iterative pruning; in a basis, the same directions of other first weights."""
        selection = self.runner.selection(arm)
        if selection.mask is not None:
            super()._fresh(arm, recipe)
            return
        before = self.runner.trained(Arm(arm.seed, "ticket", arm.level - 1) if arm.level > 1 else Arm(arm.seed, "dense", 0))
        self.runner.run(arm, lambda: self.job.fresh(arm.stream("fresh weights")), selection, recipe, choice=self._choice(arm.level, before))


def budget_epochs(arm: Arm, row: Callable[[Arm], Trained]) -> int:
    """The epochs that give a control the ticket's whole training budget in one schedule: the random one its epochs, the dense one its
    arithmetic, at least one.
    """
    lineage = [row(Arm(arm.seed, "ticket" if level else "dense", level)) for level in range(arm.level + 1)]
    if arm.kind == "random":
        return max(1, sum(row.epochs for row in lineage))
    return max(1, math.ceil(sum(row.epochs * row.macs for row in lineage) / lineage[0].macs))


def _stretched(recipe: Recipe, epochs: int) -> Recipe:
    """The same schedule over another number of epochs."""
    return replace(recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs - 1))
