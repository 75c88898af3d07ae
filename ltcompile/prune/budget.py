"""The plan that a ranking of channels would make, within a budget of measured time.

The value of a width follows the ranking: the largest share of all filters that it would leave with this layer so narrow. A plan is as good as
its worst layers, so the sum of -share^-CARE is maximised, subject to the summed time of the layers, each of which depends on the widths
that it reads and makes. Widths are chosen among multiples of 8 (of 4 and less in narrow layers): where time rises smoothly they follow the
ranking's own cut, and where it jumps those just on an edge of the hardware win by themselves. (Sums and products of importance leave the
ranking for whatever is cheap: layers of small images stay whole, and the expensive ones next to the input lose most of theirs.)

- A chain of layers: exactly, by dynamic programming over (layer, width, time so far in thousandths of the budget).
- Any other network where no layer reads more than one group's channels: time gets a price (Lagrange), and for each price the best widths
  follow exactly, by eliminating one group after the other (Bertele & Brioschi 1972); the price is found by bisection. What that leaves of
  the budget is filled by the best step that fits, until none does.
- Where layers read several groups (concatenations), or elimination would need tables beyond memory: the same with a descent by one group
  at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ltcompile.core.plan import PruningPlan
from ltcompile.core.profile import Profile
from ltcompile.errors import InvalidSetting
from ltcompile.graph import cut
from ltcompile.graph.widths import Widths, layer_widths
from ltcompile.prune._candidates import Wide, candidates_of, values_of
from ltcompile.prune.choose import Ranking

Array = NDArray[np.float64]
RelativeTimer = Callable[[nn.Module], float]  # a cut -> the share of the whole network's time that it takes, measured
Choice = tuple[int, ...]  # for each set of tied groups, which of its candidates
STEPS = 1000  # that the budget of a chain is counted in
LARGEST_TABLE = 1 << 22
BISECTIONS = 40
EXCHANGES = 8  # of a step of one set for steps of others, at most
SWEEPS = 6
SLACK, CORRECTIONS = 0.03, 5


def solve_budget(ranking: Ranking, layers: Mapping[str, Widths], profile: Profile, budget_ms: float) -> PruningPlan:
    """The best plan for `budget_ms`, among those that `ranking` allows.

    Args:
        layers: the widths of the network that `ranking` is of, with the layers' names in the profile.

    Raises:
        InvalidSetting: the budget is below the least time that is allowed.
    """
    problem = WidthAllocation.of(ranking, layers, profile)
    least_ms = problem.time(problem.least)
    if least_ms > budget_ms:
        raise InvalidSetting(
            f"{budget_ms:.4g} ms cannot be reached: with all that may be cut gone, the network takes {least_ms:.4g} ms by its profile "
            f"({profile.dense_ms / least_ms:.3g} times as fast as whole); choose a larger budget, or allow larger cuts (max_layer_ratio=)"
        )
    best = problem.solve(budget_ms)
    return ranking.plan(tuple(int(c[i]) for c, i in zip(problem.candidates, best, strict=True)))


def plan_for_latency(
    model: nn.Module, ranking: Ranking, profile: Profile, share: float, measured: RelativeTimer | None = None
) -> PruningPlan:
    """The plan of `model`, which `ranking` is of, for `share` of the whole network's time: where `measured` finds more than that, or less
    by more than SLACK, planning is repeated for a budget corrected by so much. Raises InvalidSetting as `solve_budget` does.
    """
    layers, target_ms = layer_widths(model, ranking.groups), share * profile.dense_ms
    found = solve_budget(ranking, layers, profile, target_ms)
    best, best_rank = found, (True, math.inf)  # a plan that is faster than requested ranks before one that misses the target
    for _ in range(CORRECTIONS if measured else 0):
        assert measured is not None
        error = measured(cut(model, found)) / (share * (1 - SLACK / 2)) - 1
        if (rank := (error > SLACK / 2, abs(error))) < best_rank:
            best, best_rank = found, rank
        if abs(error) <= SLACK / 2:
            break
        target_ms /= 1 + error
        try:
            found = solve_budget(ranking, layers, profile, target_ms)
        except InvalidSetting:  # infeasible by the profile; the best measured plan is kept
            break
    return best


@dataclass(frozen=True)
class WidthAllocation:
    """For each set of tied groups its candidates (steps, rising) and their values; tables of milliseconds over the candidates of one or two
    sets; and what a layer over more of them takes, as a function of all choices."""

    candidates: tuple[NDArray[np.intp], ...]
    values: tuple[Array, ...]
    tables: Mapping[tuple[int, ...], Array]
    wide: tuple[Wide, ...]

    @classmethod
    def of(cls, ranking: Ranking, layers: Mapping[str, Widths], profile: Profile) -> WidthAllocation:
        candidates = tuple(candidates_of(b, least, given) for b, least, given in ranking.bounds)
        values = tuple(values_of(b, ranking.left(b))[c] for (b, *_), c in zip(ranking.bounds, candidates, strict=True))
        owner = {g.name: i for i, (b, *_) in enumerate(ranking.bounds) for g in b.groups}
        fixed = {g.name: g.width for g in ranking.groups if g.name not in owner}
        channels = {g.name: b.channels(g, 1) for b, *_ in ranking.bounds for g in b.groups}
        tables: dict[tuple[int, ...], Array] = {}
        wide = []
        for name, surface in ((name, profile.surfaces[name]) for name in profile.surfaces if name in layers):  # others went with a branch
            over = tuple(sorted({owner[g] for g in layers[name].groups if g in owner}))
            if len(over) > 2:
                wide.append(Wide(over, layers[name], surface, owner, channels, fixed))
                continue
            kept: dict[str, Any] = dict(fixed)
            for axis, i in enumerate(over):
                shape = [-1 if a == axis else 1 for a in range(len(over))]
                kept |= {g: candidates[i].reshape(shape) * channels[g] for g, o in owner.items() if o == i}
            tables[over] = tables.get(over, 0.0) + surface(*layers[name].of(kept))
        return cls(candidates, values, tables, tuple(wide))

    @property
    def least(self) -> Choice:
        return (0,) * len(self.candidates)

    def time(self, choice: Choice) -> float:
        """Milliseconds."""
        narrow = sum(float(table[tuple(choice[i] for i in over)]) for over, table in self.tables.items())
        return narrow + sum(float(layer.ms(self.candidates, choice)) for layer in self.wide)

    def value(self, choice: Choice) -> float:
        return sum(float(w[i]) for w, i in zip(self.values, choice, strict=True))

    def solve(self, budget_ms: float) -> Choice:
        """The best choice that takes at most `budget_ms`; the least one is known to."""
        order = self._chain()
        if order is not None:
            return self._exactly(order, budget_ms)
        return self._exchanged(self._filled(self._priced(budget_ms), budget_ms), budget_ms)

    # A chain

    def _chain(self) -> list[int] | None:
        """The sets in the order of a chain, or None where they do not form one."""
        if self.wide:
            return None
        meets: dict[int, set[int]] = {i: set() for i in range(len(self.candidates))}
        for a, b in (over for over in self.tables if len(over) == 2):
            meets[a].add(b)
            meets[b].add(a)
        ends = [i for i, others in meets.items() if len(others) <= 1]
        order: list[int] = []
        while len(order) < len(meets):  # several chains are one, with nothing between
            here = next((i for i in ends if i not in order), None)
            while here is not None:
                order.append(here)
                here = next((i for i in meets[here] if i not in order), None)
            if len(order) < len(meets) and all(i in order for i in ends):
                return None
        return order if all(len(others) <= 2 for others in meets.values()) else None

    def _exactly(self, order: list[int], budget_ms: float) -> Choice:
        """By dynamic programming: best[c, b] is the largest value up to here, at candidate c, in b steps of time."""
        unit = (budget_ms - float(self.tables.get((), np.zeros(())))) / STEPS
        came: list[NDArray[np.intp]] = []
        best = np.zeros((1, STEPS + 1))
        for before, here in zip([None, *order], order, strict=False):
            taken = self._between(before, here, len(best), unit)  # (candidates before, candidates here)
            after = np.full((taken.shape[1], STEPS + 1), -np.inf)
            origin = np.zeros((taken.shape[1], STEPS + 1), dtype=np.intp)
            for c in range(taken.shape[1]):
                left = np.arange(STEPS + 1) - taken[:, c, None]  # (candidates before, time)
                reached = np.where(left >= 0, np.take_along_axis(best, np.maximum(left, 0), axis=1), -np.inf)
                origin[c] = reached.argmax(0)
                after[c] = reached.max(0) + self.values[here][c]
            came.append(origin)
            best = after
        return self._traced(order, best, came, unit, budget_ms)

    def _between(self, before: int | None, here: int, many: int, unit: float) -> NDArray[np.intp]:
        """Steps of time that `here` adds, for each pair of candidates before and here."""
        ms = np.zeros((many, len(self.candidates[here]))) + self.tables.get((here,), np.zeros(1))
        if before is not None:
            pair = tuple(sorted((before, here)))
            if (table := self.tables.get(pair)) is not None:
                ms = ms + (table if pair == (before, here) else table.T)
        return np.rint(ms / unit).astype(np.intp)

    def _traced(self, order: list[int], best: Array, came: Sequence[NDArray[np.intp]], unit: float, budget_ms: float) -> Choice:
        """The best end whose exact time fits: steps were rounded."""
        for steps in range(STEPS, -1, -1):
            c = int(best[:, steps].argmax())
            if not np.isfinite(best[c, steps]):
                break
            choice, left = [0] * len(order), steps
            for place in range(len(order) - 1, -1, -1):
                choice[order[place]] = c
                previous = int(came[place][c, left])
                before = order[place - 1] if place else None
                left -= int(self._between(before, order[place], came[place - 1].shape[0] if place else 1, unit)[previous, c])
                c = previous
            if self.time(tuple(choice)) <= budget_ms:
                return self._filled(tuple(choice), budget_ms)
        return self._filled(self.least, budget_ms)

    # Any other network

    def _priced(self, budget_ms: float) -> Choice:
        """The best among the choices that are best for some price of time and fit."""
        best, low, high = self.least, 0.0, self._highest_price()
        for _ in range(BISECTIONS):
            price = (low * high) ** 0.5 if low else high / 1e3 if high > 1e-30 else 0.0
            found = self._at(price, best)
            if self.time(found) <= budget_ms:
                high = price
                best = max(best, found, key=self.value)
            else:
                low = price
        return best

    def _highest_price(self) -> float:
        """A price at which no step pays for its time."""
        least_ms = (
            min(float(np.ptp(t)) for t in self.tables.values() if np.ptp(t) > 0)
            if any(np.ptp(t) > 0 for t in self.tables.values())
            else 1.0
        )
        return 1e3 * sum(float(np.ptp(w)) for w in self.values) / max(least_ms, 1e-9)

    def _at(self, price: float, start: Choice) -> Choice:
        """The best choice where a millisecond costs `price`."""
        if not self.wide:
            try:
                return self._eliminate(price)
            except MemoryError:
                pass
        return self._descend(price, start)

    def _eliminate(self, price: float) -> Choice:
        """Exactly: each set in turn is replaced by the best that it can add, given its neighbours. Raises MemoryError."""
        factors = {over: -price * table for over, table in self.tables.items()}
        for i, values in enumerate(self.values):
            factors[i,] = factors.get((i,), 0.0) + values
        answers: list[tuple[int, tuple[int, ...], NDArray[np.intp]]] = []
        left = set(range(len(self.values)))
        while left:
            here = min(left, key=lambda i: len(set().union(*(o for o in factors if i in o))))
            mine = [over for over in factors if here in over]
            others = tuple(sorted(set().union(*mine) - {here}))
            shape = [len(self.values[i]) for i in others]
            if np.prod(shape, dtype=float) * len(self.values[here]) > LARGEST_TABLE:
                raise MemoryError
            total = np.zeros((*shape, len(self.values[here])))
            for over in mine:
                total += _spread(factors.pop(over), over, (*others, here))
            answers.append((here, others, total.argmax(-1)))
            factors[others] = factors.get(others, 0.0) + total.max(-1)
            left.remove(here)
        choice = [0] * len(self.values)
        for here, others, answer in reversed(answers):
            choice[here] = int(answer[tuple(choice[i] for i in others)])
        return tuple(choice)

    def _descend(self, price: float, start: Choice) -> Choice:
        """One set at a time, to its best given all others, until nothing changes."""
        choice = list(start)
        for _ in range(SWEEPS):
            was = tuple(choice)
            for here, values in enumerate(self.values):
                total = values - price * self._along(here, choice)
                choice[here] = int(total.argmax())
            if tuple(choice) == was:
                break
        return tuple(choice)

    def _along(self, here: int, choice: Sequence[int]) -> Array:
        """Milliseconds of all that depends on a set, for each of its candidates."""
        ms = np.zeros(len(self.candidates[here]))
        for over, table in self.tables.items():
            if here in over:
                ms = ms + table[tuple(slice(None) if i == here else choice[i] for i in over)]
        for layer in self.wide:
            if here in layer.over:
                ms = ms + layer.ms(self.candidates, choice, here)
        return ms

    def _filled(self, choice: Choice, budget_ms: float) -> Choice:
        """With whatever fits into what is left of the budget, the highest value for its time first."""
        now = list(choice)
        while True:
            left = budget_ms - self.time(tuple(now))
            offers = []
            for here, values in enumerate(self.values):
                ms, at = self._along(here, now), now[here]
                for c in range(at + 1, len(values)):
                    if (more := float(ms[c] - ms[at])) <= left and values[c] > values[at]:
                        offers.append((float(values[c] - values[at]) / max(more, 1e-12), here, c))
            if not offers:
                return tuple(now)
            _, here, c = max(offers)
            now[here] = c

    def _exchanged(self, choice: Choice, budget_ms: float) -> Choice:
        """`choice`, better by as much as one step less of a set leaves time for elsewhere, until no such exchange adds value."""
        for _ in range(EXCHANGES):
            lowered = [(*choice[:here], at - 1, *choice[here + 1 :]) for here, at in enumerate(choice) if at > 0]
            better = max((self._filled(each, budget_ms) for each in lowered), key=self.value, default=choice)
            if self.value(better) <= self.value(choice):
                break
            choice = better
        return choice


def _spread(table: Any, over: tuple[int, ...], onto: tuple[int, ...]) -> Array:
    """`table` with the axes of `over` as an array that broadcasts over those of `onto`."""
    table = np.asarray(table)
    order = sorted(range(len(over)), key=lambda a: onto.index(over[a]))
    shape = [table.shape[over.index(i)] if i in over else 1 for i in onto]
    return np.asarray(table.transpose(order).reshape(shape))
