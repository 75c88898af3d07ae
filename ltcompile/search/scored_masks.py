"""The levels of a method that chooses while it trains, in the place of train, prune, rewind."""

from __future__ import annotations

import math

from torch import nn

from ltcompile.core.arm import Arm
from ltcompile.core.recipe import Recipe
from ltcompile.search import methods, rewind
from ltcompile.search.arm_runner import Choice
from ltcompile.search.iterative_pruning import IterativePruning


class ScoredMasks(IterativePruning):
    """Each level keeps a share of the unpruned network's weights, or of its coordinates in a basis."""

    def _ticket(self, arm: Arm, recipe: Recipe) -> None:
        rewinding, everything = self.job.rewinding, self.prepared.everything
        _, trained = self._before(arm)
        sources = rewind.Sources(trained, lambda: self.runner.early(arm.seed), lambda: self.job.fresh(arm.stream("fresh weights")))

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
