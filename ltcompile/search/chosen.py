"""The levels of a method that chooses while it trains, in the place of train, prune, rewind."""

from __future__ import annotations

import copy
import math

from torch import nn

from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained
from ltcompile.search import methods, rewind
from ltcompile.search.kept import Kept
from ltcompile.search.rounds import Rounds
from ltcompile.search.units import Choice, Unit


class Chosen(Rounds):
    """Each level keeps a share of the whole network's weights, or of its coordinates in a basis."""

    def _level(self, seed: int, level: int, model: nn.Module, kept: Kept, share: float) -> tuple[nn.Module, Kept, Trained]:
        unit, rewinding, whole = Unit(seed, "ticket", level), self.asked.rewinding, self.asked.whole
        iterative = methods.iterative(self.config.method)
        sources = rewind.Sources(model, lambda: self.units.early(seed), lambda: self.asked.fresh(unit.stream("fresh weights")))

        def start() -> nn.Module:
            network: nn.Module = rewinding.restart(sources, whole.plan, whole.plan) if iterative else self.asked.initial(seed)
            return network

        recipe = methods.recipe(self.config.method, rewinding.recipe(self.asked.recipe))
        first = rewinding.first_epoch(self.config.rewind_epoch)
        network, row = self.units.run(unit, start, whole, recipe, first, self._choice(level, model))
        return network, self.units.kept(unit), row

    def _choice(self, level: int, before: nn.Module) -> Choice:
        """What is kept at a level; `before` is the network of the level before it, for methods that look at one."""
        left = math.prod(1 - share for share in self.config.shares[:level])
        return Choice(left, copy.deepcopy(before) if methods.iterative(self.config.method) else None)

    def _fresh(self, unit: Unit, recipe: Recipe) -> tuple[nn.Module, Trained]:
        """Of a mask, as ever; in a basis, the same directions of other first weights."""
        kept = self.units.kept(unit)
        if kept.mask is not None:
            return super()._fresh(unit, recipe)
        before = self.units.trained(Unit(unit.seed, "ticket", unit.level - 1) if unit.level > 1 else Unit(unit.seed, "dense", 0))
        return self.units.run(
            unit, lambda: self.asked.fresh(unit.stream("fresh weights")), kept, recipe, choice=self._choice(unit.level, before)
        )
