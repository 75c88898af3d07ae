"""From scores to a plan: which channels go, per layer (local), ranked over the whole network (global), or over layers of one kind (isomorphic)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from ltcompile.core.plan import Group, PruningPlan
from ltcompile.errors import InvalidSetting
from ltcompile.graph.tied_groups import TiedGroups, tied_groups

Scope = Literal["global", "local", "isomorphic"]
Steps = tuple[int, ...]
_ROUNDING = 1e-9  # a share of 0.29 of 100 filters is 29 of them, and not 28.999999999999996


def choose(
    groups: tuple[Group, ...],
    scores: Mapping[str, Tensor],
    share: float,
    scope: Scope,
    *,
    floors: Mapping[str, int] | None = None,
    kept: Mapping[str, int] | None = None,
    align: int = 1,
) -> PruningPlan:
    """Drop the share `share` of the filters of `groups`, lowest `scores` first: see `Ranking`."""
    ranking = Ranking(groups, scores, scope, floors=floors, kept=kept, align=align)
    return ranking.plan(ranking.steps(share))


class Ranking:
    """The channels that may go, in the order in which they go; ranked once, for plans of any number of shares.

    A larger share drops the same channels and more. "local" takes the same share from every set of tied groups; "global" the
    lowest-ranked steps of all of them, as long as they make up no more than that share of all filters. "isomorphic" takes that share from
    each class of sets with the same structure, as many layers that make, hold and read a channel: there scores compare like with like
    (Fang et al. 2024, "Isomorphic pruning for vision models", arXiv:2407.04616). A step of tied groups is ranked by the mean score of its
    filters.

    Args:
        scores: group -> (C,), higher is kept; of equal ones, the first are.
        floors: group -> the channels that it keeps at least, one by default.
        kept: group -> the channels that it keeps, whatever the share; such groups take no part in the ranking.
        align: what is left is rounded to the nearest multiple of so many filters. A layer narrower than that is left alone; tied
            groups of which no cut is aligned are cut nevertheless.

    Raises:
        InvalidSetting: no such scope, or scores that a group has not, or not one for each channel.
    """

    def __init__(
        self,
        groups: tuple[Group, ...],
        scores: Mapping[str, Tensor],
        scope: Scope,
        *,
        floors: Mapping[str, int] | None = None,
        kept: Mapping[str, int] | None = None,
        align: int = 1,
    ) -> None:
        if scope not in get_args(Scope):
            raise InvalidSetting(f"scope must be one of {', '.join(get_args(Scope))}, not {scope!r}")
        self.groups, self._scope, self._align = groups, scope, align
        free = [b for b in tied_groups(groups) if not b.frozen]
        fixed, least = kept or {}, floors or {}
        self._given = [b for b in free if all(g.name in fixed for g in b.groups)]
        self._ranked = [b for b in free if any(g.name not in fixed for g in b.groups)]
        self._tied = self._given + self._ranked
        self._least = [b.steps_for(least) for b in self._tied]
        self._given_steps = [b.steps_for(fixed) for b in self._given]
        _check_scores(self._tied, scores)
        self._scores = scores
        self._best_first = {g.name: _best_first(scores[g.name]) for b in self._tied for g in b.groups}
        self._classes = self._rank(scores)

    def steps(self, share: float) -> Steps:
        """How many steps each set of tied groups keeps when the share `share` of the filters goes."""
        ranked = [b.steps for b in self._ranked]
        for one in self._classes:
            count = np.searchsorted(one.gone, share * one.filters + _ROUNDING, side="right")
            for owner, gone in Counter(one.owners[:count].tolist()).items():
                ranked[owner] -= gone
        counts = [*self._given_steps, *ranked]
        return tuple(_aligned(*given, self._align) for given in zip(counts, self._tied, self._least, strict=True))

    def plan(self, steps: Steps) -> PruningPlan:
        """The plan that keeps so many steps of each set of tied groups."""
        kept = {}
        for tied, count in zip(self._tied, steps, strict=True):
            for group in tied.groups:
                best = self._best_first[group.name][: tied.channels(group, count)]
                kept[group.name] = tuple(np.sort(best).tolist())
        return PruningPlan(self.groups, kept)

    @property
    def bounds(self) -> list[tuple[TiedGroups, int, int | None]]:
        """Each set of tied groups that may be cut, the fewest steps that it keeps, and how many it keeps in any case where that is given."""
        given = [*self._given_steps, *(None for _ in self._ranked)]
        return list(zip(self._tied, self._least, given, strict=True))

    def left(self, tied: TiedGroups) -> np.ndarray:
        """The largest share of all filters that a plan leaves which keeps no more than 0, 1, 2... steps of `tied`: (steps + 1,)."""
        whole = np.ones(tied.steps + 1)
        if tied in self._given:
            return whole
        if self._scope == "local":
            return np.arange(tied.steps + 1) / tied.steps
        here = self._ranked.index(tied)
        least = self._least[len(self._given) + here]
        one = next(one for one in self._classes if here in one.members)
        whole[:least] = 0.0
        whole[least:-1] -= one.gone[one.owners == here][::-1] / one.filters  # gone when one more than these goes
        return whole

    def _rank(self, scores: Mapping[str, Tensor]) -> list[_Class]:
        """The sets that are ranked together, with their steps above the floors sorted."""
        kinds: dict[Hashable, list[int]] = {}
        for at, tied in enumerate(self._ranked):
            kinds.setdefault({"global": "", "local": at, "isomorphic": _structure(tied)}[self._scope], []).append(at)
        least, found = self._least[len(self._given) :], []
        for members in kinds.values():
            values = [self._step_scores(self._ranked[at], scores)[least[at] :] for at in members]
            owners = np.repeat(members, [len(v) for v in values])[np.argsort(np.concatenate(values), kind="stable")]
            sizes = np.array([b.filters_per_step for b in self._ranked])
            gone = np.cumsum(sizes[owners])
            found.append(_Class(members, owners, gone, sum(self._ranked[at].steps * int(sizes[at]) for at in members)))
        return found

    def _step_scores(self, tied: TiedGroups, scores: Mapping[str, Tensor]) -> np.ndarray:
        """The mean score of the filters of each step (steps,), best first."""
        total = np.zeros(tied.steps)
        for group in tied.groups:
            sorted_scores = scores[group.name].double().numpy()[self._best_first[group.name]]
            weight = group.filters_per_channel / tied.filters_per_step
            total += weight * sorted_scores.reshape(tied.steps, -1).sum(1)
        return total


@dataclass(frozen=True)
class _Class:
    """Sets of tied groups that are ranked together: their places, the owner of each step in the order in which steps go, the filters that go
    with it and all before it, and the filters of all."""

    members: list[int]
    owners: np.ndarray
    gone: np.ndarray
    filters: int


def _structure(tied: TiedGroups) -> Hashable:
    """How many axes of each kind hold the channels of each group; counters in attributes say nothing."""
    kinds = (Counter((m.axis, len(m.index[0])) for m in g.members if not m.axis.startswith("=")) for g in tied.groups)
    return tuple(sorted(tuple(sorted(kind.items())) for kind in kinds))


def _check_scores(found: list[TiedGroups], scores: Mapping[str, Tensor]) -> None:
    for group in (g for b in found for g in b.groups):
        value = scores.get(group.name)
        if value is None:
            raise InvalidSetting(f"group {group.name!r} has no scores; give it {group.width}, one a channel")
        if tuple(value.shape) != (group.width,):
            raise InvalidSetting(
                f"the scores of group {group.name!r} have shape {tuple(value.shape)}; give it {group.width}, one a channel"
            )
        if not bool(value.isfinite().all()):
            raise InvalidSetting(
                f"the scores of group {group.name!r} are not all finite; look for nan or inf in the weights that they rank"
            )


def _best_first(scores: Tensor) -> np.ndarray:
    """The channels by falling score, equal ones in their order."""
    return np.argsort(-scores.double().numpy(), kind="stable")


def _aligned(count: int, tied: TiedGroups, least: int, align: int) -> int:
    """`count` steps, raised to the floor, and rounded to the nearest multiple that aligns them."""
    count, multiple = max(count, least), tied.aligned_steps(align)
    if multiple > tied.steps:
        return count if len(tied.groups) > 1 else tied.steps
    nearest = max(1, math.floor(count / multiple + 0.5)) * multiple
    while nearest < least:
        nearest += multiple
    return min(nearest, tied.steps)
