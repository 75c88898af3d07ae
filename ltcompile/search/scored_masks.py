"""The levels of a method that chooses while it trains, in the place of train, prune, rewind."""

from __future__ import annotations

import copy
import math

from torch import nn

from ltcompile.core.arm import Arm
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained
from ltcompile.search import methods, rewind
from ltcompile.search.arm_runner import Choice
from ltcompile.search.iterative_pruning import IterativePruning
from ltcompile.search.selection import Selection


class ScoredMasks(IterativePruning):
    """Each level keeps a share of the unpruned network's weights, or of its coordinates in a basis."""

    def _level(self, seed: int, level: int, model: nn.Module, selection: Selection, share: float) -> tuple[nn.Module, Selection, Trained]:
        arm, rewinding, everything = Arm(seed, "ticket", level), self.job.rewinding, self.prepared.everything
        iterative = methods.iterative(self.config.method)
        sources = rewind.Sources(model, lambda: self.runner.early(seed), lambda: self.job.fresh(arm.stream("fresh weights")))

        def start() -> nn.Module:
            network: nn.Module = rewinding.restart(sources, everything.plan, everything.plan) if iterative else self.job.initial(seed)
            return network

        recipe = methods.recipe(self.config.method, rewinding.recipe(self.job.recipe))
        first = rewinding.first_epoch(self.config.rewind_epoch)
        network, row = self.runner.run(arm, start, everything, recipe, first, self._choice(level, model))
        return network, self.runner.selection(arm), row

    def _choice(self, level: int, before: nn.Module) -> Choice:
        """What is kept at a level; `before` is the network of the level before it, for methods that look at one."""
        remaining = math.prod(1 - share for share in self.config.shares[:level])
        return Choice(remaining, copy.deepcopy(before) if methods.iterative(self.config.method) else None)

    def _fresh(self, arm: Arm, recipe: Recipe) -> tuple[nn.Module, Trained]:
        """With a mask, as in iterative pruning; in a basis, the same directions of other first weights."""
        selection = self.runner.selection(arm)
        if selection.mask is not None:
            return super()._fresh(arm, recipe)
        before = self.runner.trained(Arm(arm.seed, "ticket", arm.level - 1) if arm.level > 1 else Arm(arm.seed, "dense", 0))
        return self.runner.run(
            arm, lambda: self.job.fresh(arm.stream("fresh weights")), selection, recipe, choice=self._choice(arm.level, before)
        )
