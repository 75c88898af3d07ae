"""Targets: the smallest cut that leaves a given share of the MACs or parameters, found by counting and without training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from ltcompile.core.plan import PruningPlan
from ltcompile.errors import InvalidModel, InvalidSetting
from ltcompile.graph import Example, Size, cut, on_meta, size
from ltcompile.graph._copy import copied
from ltcompile.graph.count import flop_counter
from ltcompile.graph.inputs import Arguments
from ltcompile.prune.choose import Ranking, Steps
from ltcompile.prune.limits import Limits

Measure = Literal["macs", "params", "time", "energy"]
_NAMED = 3  # frozen groups that a refusal names


@dataclass(frozen=True)
class Target:
    """The share of the dense network's MACs, parameters, time or energy that may stay. Raises InvalidSetting where it is not between 0 and 1."""

    measure: Measure
    share: float

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure) or not 0 < self.share < 1:
            raise InvalidSetting(f"target_{self.measure} is the share that may stay, between 0 and 1, not {self.share}")

    @classmethod
    def one_of(cls, macs: float | None, params: float | None, time: float | None, energy: float | None) -> Target | None:
        """The target, if there is one. Raises InvalidSetting where there are several."""
        values: dict[Measure, float | None] = {"macs": macs, "params": params, "time": time, "energy": energy}
        given = {measure: share for measure, share in values.items() if share is not None}
        if len(given) > 1:
            raise InvalidSetting(f"a cut has one target: leave {' or '.join(f'target_{measure}' for measure in given)} out")
        return next((cls(measure, share) for measure, share in given.items()), None)

    @property
    def profiled(self) -> bool:
        """Whether a profile says what widths cost."""
        return self.measure in ("time", "energy")

    @property
    def unit(self) -> str:
        return "MACs" if self.measure == "macs" else "parameters"

    def of(self, counted: Size) -> int:
        """What it looks at in `counted`; time and energy are not counted, but measured."""
        return counted.macs if self.measure == "macs" else counted.params


class SizeCounter:
    """Counts what plans leave of a network, on a copy without weights, where nothing is computed."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        inputs = Arguments.of(example)
        self._model, self._inputs = on_meta(model), inputs.on_meta()
        try:
            self.dense = size(self._model, self._inputs)
        except InvalidModel:  # it mixes in tensors that it makes itself: count while it computes
            self._model, self._inputs = copied(model).cpu(), inputs.map(lambda t: t.cpu())
            self.dense = size(self._model, self._inputs)

    def left(self, plan: PruningPlan) -> Size:
        """The size of the network that `plan` leaves."""
        return size(cut(self._model, plan), self._inputs)

    def by_layer(self, plan: PruningPlan, measure: Measure) -> Counter[str]:
        """Layer -> its MACs or parameters in the network that `plan` leaves."""
        small = cut(self._model, plan).eval()
        if measure == "params":
            return Counter({name: sum(p.numel() for p in layer.parameters(recurse=False)) for name, layer in small.named_modules()})
        inputs = self._inputs.first()
        with flop_counter() as counter, torch.no_grad():
            small(*inputs.args, **inputs.kwargs)
        root = f"{type(small).__name__}."
        return Counter({name.removeprefix(root): sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()})


def plan_for_size(ranking: Ranking, measured: Callable[[PruningPlan], int], most: float) -> PruningPlan:
    """The smallest cut of `ranking` of which `measured` is at most `most`, by bisection; the largest cut where none is.

    Larger shares drop the same channels and more, so what is left falls as the share rises.
    """
    known: dict[Steps, bool] = {}

    def fits(steps: Steps) -> bool:
        if steps not in known:
            known[steps] = measured(ranking.plan(steps)) <= most
        return known[steps]

    low, high = 0.0, 1.0
    if fits(ranking.steps(low)):
        return ranking.plan(ranking.steps(low))
    while high - low > 1e-7 and ranking.steps(low) != ranking.steps(high):
        middle = (low + high) / 2
        if fits(ranking.steps(middle)):
            high = middle
        else:
            low = middle
    return ranking.plan(ranking.steps(high))


def check_reachable(target: Target, ranking: Ranking, size_counter: SizeCounter, limits: Limits, align: int, whole: int = 0) -> None:
    """Raises InvalidSetting where even the largest cut of `ranking` leaves more than `target` of `whole`, or of what it ranks; it says why."""
    largest = ranking.plan(ranking.steps(1.0))
    least, dense = target.of(size_counter.left(largest)), whole or target.of(size_counter.dense)
    if least <= target.share * dense:
        return
    costs = size_counter.by_layer(largest, target.measure)
    frozen = Counter({g.name: sum(costs[m.layer] for m in g.producers) for g in largest.groups if g.frozen})
    frozen_costs = [
        f"{name!r} ({cost / least:.0%} of that) is left alone: {largest.frozen[name]}"
        for name, cost in frozen.most_common(_NAMED)
        if cost > 0.01 * least
    ]
    least_share = 1 - limits.max_layer_ratio
    floors = (
        f"every other layer keeps at least {least_share:.0%} of its channels (max_layer_ratio) and {limits.min_channels} (min_channels)"
    )
    if align > 1:
        floors += f", and a multiple of {align}"
    if limits.ratios:
        floors += ", or what a ratio of its own leaves"
    raise InvalidSetting(
        f"target_{target.measure} {target.share:g} cannot be met: the largest cut that is allowed leaves {least / dense:.3g} of the "
        f"{target.unit}. {'; '.join([*frozen_costs, floors])}"
    )
