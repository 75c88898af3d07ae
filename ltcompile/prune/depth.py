"""Plans that remove whole residual branches besides channels, where that costs the outputs less at the same target.

    score[branch] = by how much the outputs change without the branch alone / what of the target's measure goes with it

Outputs are compared on unlabelled inputs: summed squared change over summed squared deviation from their mean. Scores of channels and of
branches are in different units, so that no ranking holds both. Instead branches go one after the other, the lowest score first; for each
number of them, widths are planned for what is left of the target; and of these plans, which all meet it, the one counts by which the
outputs change least, with batch norm's statistics taken again. Widths alone are among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ltcompile.core.plan import Branch, Group, PruningPlan
from ltcompile.core.profile import Profile
from ltcompile.errors import InvalidData, InvalidSetting
from ltcompile.graph import Example, cut
from ltcompile.graph.branches import branches
from ltcompile.graph.inputs import Arguments, check_arguments
from ltcompile.graph.rules import tensors_in
from ltcompile.graph.running_statistics import take_statistics
from ltcompile.graph.trace import plain
from ltcompile.prune.limits import Limits
from ltcompile.prune.target import SizeCounter, Target

PATIENCE = 3  # plans without a smaller change, before the search for one ends
Attempt = Callable[[tuple[Branch, ...]], PruningPlan]  # the plan for the target where these branches go; raises InvalidSetting
Cost = Callable[[Branch], float]


def removable(model: nn.Module, example: Example, limits: Limits) -> tuple[list[Branch], str]:
    """The branches of `model` that may go; and where there is none, why."""
    found, refused = branches(model, example)
    allowed = [branch for branch in found if all(map(limits.allows, branch.layers))]
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "no addition has a branch next to a shortcut"
    return allowed, "" if allowed else f"depth= finds no residual branch that may go: {'the limits keep all of them' if found else reasons}"


def without(model: nn.Module, groups: tuple[Group, ...], removed: tuple[Branch, ...]) -> tuple[PruningPlan, nn.Module, tuple[Group, ...]]:
    """The plan that removes branches alone, the network that it leaves, and of `groups` what may be cut in that."""
    first = PruningPlan(groups, removed_branches=removed)
    return (first, cut(model, first), first.remaining()) if removed else (first, model, groups)


def ratio_left(ratio: float, first: PruningPlan) -> float:
    """The share of the filters that are left after `first` to drop, so that `ratio` of all go. Raises InvalidSetting where no share does."""
    all_filters, left = (
        sum(g.width * g.filters_per_channel for g in groups if not g.frozen) for groups in (first.groups, first.remaining())
    )
    share = 1 - (1 - ratio) * all_filters / max(left, 1)
    if not share > 0:
        raise InvalidSetting(f"a ratio of {ratio} is passed without so many branches")
    return share


class DepthSearch:
    """The branches of `model` that may go, and what `batches` say of them. Raises InvalidData where the network does not run on these."""

    def __init__(self, model: nn.Module, removable: Sequence[Branch], batches: Sequence[Example]) -> None:
        self._model, self._batches = model, batches
        self._expected = _checked_outputs(cut(model, PruningPlan(())), batches)
        self.branches = list(removable)
        self._changes = {branch: self._change(cut(model, PruningPlan((), removed_branches=(branch,)))) for branch in self.branches}

    @classmethod
    def of(cls, model: nn.Module, example: Example, batches: Sequence[Example], limits: Limits) -> DepthSearch:
        """That of all branches that `limits` allow to go. Raises InvalidData, and InvalidSetting where there is none."""
        if not batches:
            raise InvalidData("depth= needs inputs=, batches without labels: they show what the outputs lose with a branch")
        may_go, why = removable(model, example, limits)
        if why:
            raise InvalidSetting(why)
        return cls(model, may_go, batches)

    def best(self, attempt: Attempt, cost: Cost) -> PruningPlan:
        """The plan of `attempt` by which the outputs change least. Raises InvalidSetting where no number of branches meets the target."""
        order = sorted(self.branches, key=lambda branch: self._changes[branch] / max(cost(branch), 1e-12))
        found: list[tuple[float, int, PruningPlan]] = []
        refusal = None
        for count in range(len(order) + 1):
            try:
                plan = attempt(tuple(order[:count]))
            except InvalidSetting as error:  # out of reach with so few branches, or passed with so many
                refusal = refusal or error
                continue
            small = cut(self._model, plan)
            take_statistics(small, self._batches)
            found.append((self._change(small), count, plan))
            if count - min(found)[1] >= PATIENCE:
                break
        if not found:
            assert refusal is not None
            raise refusal
        return min(found)[2]

    def _change(self, network: nn.Module) -> float:
        """By how much the outputs differ from the whole network's, relative to how they vary; infinite where they are not finite."""
        found = _outputs(network, self._batches)
        error = sum(float((a - b).square().sum()) for a, b in zip(found, self._expected, strict=True))
        spread = sum(float((b - b.mean(0)).square().sum()) for b in self._expected)
        return error / max(spread, 1e-30) if math.isfinite(error) else math.inf


def cost_of(target: Target | None, profile: Profile | None, counter: SizeCounter | None, groups: tuple[Group, ...]) -> Cost:
    """A branch -> what goes with it: milliseconds of its layers by the whole network's timing, MACs, parameters, or, without a target, filters."""
    if target is None:
        return lambda branch: float(PruningPlan(groups).filters[1] - PruningPlan(groups, removed_branches=(branch,)).filters[1])
    if target.profiled:
        assert profile is not None
        times: Mapping[str, float] = profile.runs[0].layers_ms
        return lambda branch: sum(ms for layer, ms in times.items() if branch.holds(layer))
    assert counter is not None
    return lambda branch: target.of(counter.dense) - target.of(counter.left(PruningPlan((), removed_branches=(branch,))))


def _checked_outputs(network: nn.Module, batches: Sequence[Example]) -> list[Tensor]:
    """As `_outputs`. Raises InvalidData where the network does not run on the batches."""
    for call in map(Arguments.of, batches):
        check_arguments(network, call)
    try:
        return _outputs(network, batches)
    except Exception as error:  # whatever the network's own code raises
        raise InvalidData(f"the network does not run on what inputs= gives: {type(error).__name__}: {error}") from error


@torch.no_grad()
def _outputs(network: nn.Module, batches: Sequence[Example]) -> list[Tensor]:
    """The floating-point outputs of `network` in eval mode, one tensor a batch and output, in float64."""
    network.eval()
    calls = map(Arguments.of, batches)
    found = [t for call in calls for t in tensors_in(plain(network(*call.args, **call.kwargs)))]
    return [t.double() for t in found if t.is_floating_point() and t.dim()]
