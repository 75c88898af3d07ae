"""Gradual pruning during one training."""

from __future__ import annotations

from typing import TypeVar, get_args

import torch
from torch import nn

from ltcompile.core.plan import Group, PruningPlan
from ltcompile.errors import InvalidSetting
from ltcompile.graph import Example, cut
from ltcompile.prune import criteria
from ltcompile.prune.choose import Scope
from ltcompile.prune.limits import Limits
from ltcompile.prune.planning import plan

Module = TypeVar("Module", bound=nn.Module)


class Schedule:
    """Cuts a network in steps while it trains, and its optimizer with it.

        schedule = lt.Schedule(example, ratio=0.6, first_step=500, last_step=4000)
        for step, (x, y) in enumerate(batches):
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            model = schedule(model, optimizer, step)  # the same network, or a smaller one

    After cut i of n, a fraction `ratio * (1 - (1 - i / n) ** 3)` of the filters is gone: much early, while the rest can recover, and little
    towards the end (Zhu & Gupta 2017, "To prune, or not to prune"). Cuts are equally far apart, from `first_step` to `last_step`.

    `plan` is what was cut so far, in the first network's coordinates. To resume, build the first network, cut it by the saved plan, load
    its weights, and pass the plan as `plan=`.

    Args:
        example: an input of the network, as `lt.plan` takes it.
        ratio: the fraction of filters that is gone at the end.
        first_step, last_step: the steps after which the first and the last cut happen, counted from 0.
        cuts: how many cuts there are.
        scope, criterion, align, limits: as `lt.plan` takes them; the criterion must need nothing but weights.
        plan: what was cut before, to resume.

    Raises:
        InvalidSetting: a ratio outside (0, 1), fewer steps than cuts, or a criterion that needs data. UnknownName: no such criterion.
    """

    def __init__(
        self,
        example: Example,
        ratio: float,
        first_step: int,
        last_step: int,
        cuts: int = 8,
        *,
        scope: Scope = "global",
        criterion: str = "l1",
        align: int = 1,
        limits: Limits | None = None,
        plan: PruningPlan | None = None,
    ) -> None:
        if not isinstance(ratio, int | float) or not 0 < ratio < 1:
            raise InvalidSetting(f"ratio: {ratio!r} is not between 0 and 1")
        if needed := criteria.needs(criterion):
            raise InvalidSetting(
                f"criterion: {criterion} needs {', '.join(needed)}, which a schedule does not collect; choose one of weights alone"
            )
        if scope not in get_args(Scope):
            raise InvalidSetting(f"scope: {scope!r} is not one of {', '.join(get_args(Scope))}")
        if cuts < 1 or not 0 <= first_step <= last_step or last_step - first_step < cuts - 1:
            raise InvalidSetting(f"cuts: {cuts} do not fit between first_step {first_step} and last_step {last_step}")
        self.example, self.plan = example, plan
        self.due = {
            round(first_step + (last_step - first_step) * i / max(cuts - 1, 1)): ratio * (1 - (1 - (i + 1) / cuts) ** 3)
            for i in range(cuts)
        }
        self._dropped = 0.0 if plan is None else dropped_fraction(plan)
        self._reached = min((0.0, *self.due.values()), key=lambda fraction: abs(fraction - self._dropped))  # plans round the fraction
        self._scope, self._criterion, self._align, self._limits = scope, criterion, align, limits

    def __call__(self, model: Module, optimizer: torch.optim.Optimizer | None, step: int) -> Module:
        """`model`, or where a cut is due after `step` its cut copy, which `optimizer` trains from then on.

        Raises InvalidModel and InvalidSetting as `lt.plan` and `lt.cut` do.
        """
        fraction = self.due.get(step, 0.0)
        if fraction <= self._reached:
            return model
        ratio = (fraction - self._dropped) / (1 - self._dropped)
        found = plan(model, self.example, ratio, self._scope, self._criterion, self._align, limits=self._limits)
        self.plan = found if self.plan is None else self.plan.then(found)
        self._reached, self._dropped = fraction, dropped_fraction(self.plan)
        return cut(model, found, optimizer)


def dropped_fraction(cuts: PruningPlan) -> float:
    """The fraction of the filters of all groups that can be cut that `cuts` drops."""
    free = [group for group in cuts.groups if not group.frozen]
    dropped = sum((group.width - len(cuts.kept[group.name])) * group.filters_per_channel for group in free)
    return dropped / max(sum(map(_filters, free)), 1)


def _filters(group: Group) -> int:
    return group.width * group.filters_per_channel
