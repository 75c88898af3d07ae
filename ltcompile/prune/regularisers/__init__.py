"""Sparse learning: penalties that bring whole channels to zero while a network trains, so that the cut afterwards costs little.

A file defines `penalty(norms)`, the penalty of channels with these norms (C,), and `factors(norms, amount) -> (C,)`, its proximal operator
as what each channel is multiplied by; `VALUES`, which values of a channel have the norm ("all" of its dependency group, or the "scales" of
its batch norms); `WEIGHTED`, whether the penalty of a channel of n values counts sqrt(n) times; `STRENGTH`; `RATIO`, the share of the
filters that it is applied to, 0 for all; `CRITERION` and `REDUCTION`, by which `lt.plan` ranks what it leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile import registry
from ltcompile.core.plan import Group, PruningPlan
from ltcompile.errors import InvalidModel, InvalidPlan, InvalidSetting
from ltcompile.graph import Example, trace
from ltcompile.graph.wrappers import unwrap
from ltcompile.prune import criteria
from ltcompile.prune.choose import Ranking
from ltcompile.prune.criteria import Channels, Evidence
from ltcompile.prune.criteria._channels import Slice
from ltcompile.prune.limits import Limits

BEGIN, FULL = 0.2, 0.6  # of the training: no penalty before, the whole one from there on


def names() -> list[str]:
    """The names of all regularisers."""
    return list(registry.modules(__name__))


@dataclass(frozen=True)
class _Penalised:
    """The channels of one group: the slices with their norms, those that are multiplied, and how many times the penalty counts."""

    group: Group
    normed: list[Slice]
    scaled: list[Slice]
    size: float

    def norms(self) -> Tensor:
        """(C,), with a gradient at zero."""
        squares = [_squares(piece)[piece.index.to(piece.parameter.device)].sum(1) for piece in self.normed]
        return (torch.stack(squares).sum(0) + 1e-12).sqrt()


class Regulariser:
    """A penalty on the channels of `model`, whose weight rises from 0 to `strength` between `BEGIN` and `FULL` of a training.

        sparse = lt.Regulariser("group_lasso", model, example)
        for step, (x, y) in enumerate(batches):
            loss(model(x), y).backward()
            optimizer.step()
            sparse.step(lr, step / steps)  # or: add sparse.penalty(step / steps) to the loss

    `step` applies the penalty's proximal operator to the weights, which brings channels to zero exactly where the penalty has a corner
    there; it needs no gradients. `state_dict` says which channels are penalised where that is chosen during the training.

    Args:
        name: see `names()`.
        example: an input of the network to trace it, as `lt.plan` takes it; not needed with a plan.
        plan: penalise the channels that it drops, and no others.
        strength: of the whole penalty; by default the regulariser's own.
        ratio: the share of the filters to penalise, the lowest-ranked at `BEGIN`; 0 penalises all, by default the regulariser's own.
        limits: what may be cut, and so penalised.

    Raises:
        UnknownName: no such regulariser. InvalidSetting: neither example nor plan, or a value out of range. InvalidModel: the network cannot
        be traced, or has nothing to penalise. InvalidPlan: the plan is not one of this network.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        example: Example | None = None,
        plan: PruningPlan | None = None,
        *,
        strength: float | None = None,
        ratio: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._kind = registry.load(__name__, "regulariser", name)
        self.strength: float = self._kind.STRENGTH if strength is None else strength
        self.ratio: float = self._kind.RATIO if ratio is None else ratio
        if not 0 <= self.strength < float("inf") or not 0 <= self.ratio < 1:
            raise InvalidSetting(f"strength={self.strength} must be finite, and not negative; ratio={self.ratio} must lie in [0, 1)")
        self._model, self._limits = unwrap(model), limits or Limits()
        self._groups = self._limits.freeze(trace(self._model, example)) if plan is None and example is not None else ()
        if plan is not None:
            self._groups = plan.groups
        elif example is None:
            raise InvalidSetting("give the example= to trace the network with, or a plan= whose channels are to go")
        try:
            self._penalised = [found for group in self._groups if not group.frozen and (found := self._slices(group)).normed]
        except (AttributeError, KeyError) as error:
            raise InvalidPlan(f"the plan is not one of this network: {error}") from error
        if not self._penalised:
            raise InvalidModel(f"regulariser {name!r} finds nothing to penalise: no group that may be cut has {self._kind.VALUES}")
        self._chosen: dict[str, Tensor] | None = _dropped(plan) if plan is not None else None

    def strength_at(self, progress: float) -> float:
        """The weight of the penalty after the share `progress` of the training."""
        return self.strength * min(max((progress - BEGIN) / (FULL - BEGIN), 0.0), 1.0)

    def penalty(self, progress: float = 1.0) -> Tensor:
        """The weighed penalty with its gradient, to add to a loss."""
        chosen, total = self._choice(progress), torch.zeros(())
        for one in self._penalised if self.strength_at(progress) else ():
            norms = one.norms()
            if one.group.name in chosen:
                norms = norms[chosen[one.group.name].to(norms.device)]
            total = total.to(norms.device) + one.size * self._kind.penalty(norms)
        return self.strength_at(progress) * total

    @torch.no_grad()
    def step(self, rate: float, progress: float = 1.0) -> None:
        """What a step of the learning rate `rate` does to the channels, in place."""
        amount = rate * self.strength_at(progress)
        chosen = self._choice(progress) if amount else {}
        for one in self._penalised if amount else ():
            factors = self._kind.factors(one.norms(), amount * one.size)
            if one.group.name in chosen:
                factors = torch.where(chosen[one.group.name].to(factors.device), factors, 1.0)
            for piece in one.scaled:
                _multiply(piece, factors)

    def state_dict(self) -> dict[str, Any]:
        return {"chosen": self._chosen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._chosen = state["chosen"]

    def _choice(self, progress: float) -> Mapping[str, Tensor]:
        """Group -> which of its channels are penalised (C,); without an entry, all."""
        if self._chosen is None and self.ratio and progress >= BEGIN:
            scores = criteria.score(self._kind.CRITERION, self._groups, self._model, Evidence(), self._kind.REDUCTION)
            ranking = Ranking(self._groups, scores, "global", floors=self._limits.floors(self._groups))
            self._chosen = _dropped(ranking.plan(ranking.steps(self.ratio)))
        return self._chosen or {}

    def _slices(self, group: Group) -> _Penalised:
        pieces = Channels(group, self._model).parameters
        if self._kind.VALUES == "scales":
            norms = {member.layer for member in Channels(group, self._model).norms}
            scaled = [piece for piece in pieces if piece.name.rpartition(".")[0] in norms]
            return _Penalised(group, [piece for piece in scaled if piece.name.endswith("weight")], scaled, 1.0)
        values = sum(piece.parameter.numel() // piece.parameter.shape[piece.dim] * piece.index.shape[1] for piece in pieces)
        return _Penalised(group, pieces, pieces, values**0.5 if self._kind.WEIGHTED else 1.0)


def _dropped(plan: PruningPlan) -> dict[str, Tensor]:
    found = {}
    for group, kept in plan:
        found[group.name] = torch.ones(group.width, dtype=torch.bool)
        found[group.name][list(kept)] = False
    return found


def _squares(piece: Slice) -> Tensor:
    """The sum of squares at each position of the slice's dimension."""
    squares = piece.parameter.float().square()
    others = [dim for dim in range(squares.dim()) if dim != piece.dim]
    return squares.sum(others) if others else squares


def _multiply(piece: Slice, factors: Tensor) -> None:
    value = piece.parameter
    spread = torch.ones(value.shape[piece.dim], device=value.device)
    spread[piece.index.to(value.device)] = factors[:, None]
    value.mul_(spread.to(value.dtype).view([-1 if dim == piece.dim else 1 for dim in range(value.dim())]))
