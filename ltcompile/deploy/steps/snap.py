"""Move widths to multiples of 8, 16 or 32, which hardware computes well.

Down, a layer loses its least important channels (by the L2 norm of their filters), and the network's answers change. Up, it gets channels of
zeros back, and computes what it did. Only a measurement shows which is faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from torch import nn

from ltcompile.core.fields import short
from ltcompile.core.plan import Group, PruningPlan
from ltcompile.deploy.equality import check_cut, check_same
from ltcompile.deploy.job import ShrinkJob, Snap
from ltcompile.errors import InvalidFile, InvalidSetting
from ltcompile.graph import cut, embed
from ltcompile.graph.inputs import Example
from ltcompile.graph.statistics import mixes
from ltcompile.graph.tied_groups import TiedGroups, tied_groups
from ltcompile.prune import criteria
from ltcompile.prune.budget import RelativeTimer
from ltcompile.prune.criteria import Evidence
from ltcompile.pruned import Pruned
from ltcompile.pruned.compaction import has_low_rank

ORDER = 50
AS_IT_IS = "as it is"
MULTIPLES = (8, 16, 32)
USUAL = 16
TIE = 0.02  # times so close count as the same: a network that keeps its answers is taken before one that does not


@dataclass(frozen=True)
class Snapped:
    """A network at other widths, and its plan in the original's coordinates; `way` is "as it is", or as "down to 16".

    `measured_fraction` are the times of all candidates, as fractions of the dense network's. `repeated_fraction` are those of a second
    measurement, of this way and then of the runner-up: the first measurement is biased in favour of its winner.
    """

    module: nn.Module
    plan: PruningPlan
    way: str
    measured_fraction: Mapping[str, float]
    repeated_fraction: Mapping[str, float] = field(default_factory=dict)

    @property
    def tie(self) -> bool:
        """Whether the second measurement finds the runner-up within 2 %."""
        own, *others = self.repeated_fraction.values() or (0.0,)
        return any(abs(other / own - 1) <= TIE for other in others)

    def to_json(self) -> dict[str, Any]:
        """What was measured, without the network."""
        return {
            "way": self.way,
            "measured_fraction": dict(self.measured_fraction),
            "repeated_fraction": dict(self.repeated_fraction),
            "tie": self.tie,
        }

    @property
    def same_answers(self) -> bool:
        """Whether it computes what the ticket does."""
        return not self.way.startswith("down")


def check(job: ShrinkJob) -> None:
    """Raises InvalidSetting where there is no such way to snap."""
    if job.snap is not None:
        _check_way(job.snap)


def _check_way(way: str) -> None:
    if way not in get_args(Snap):
        raise InvalidSetting(f"snap= must be one of {', '.join(get_args(Snap))}, not {way!r}")


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The network at other widths; that it is still a cut of the dense network is proven again."""
    dense, plan, lines = pruned.dense, pruned.plan, dict[str, Any]()
    snapped = Snapped(pruned.small, plan or PruningPlan(()), AS_IT_IS, {})
    if job.snap:
        if has_low_rank(pruned.method):
            raise InvalidSetting("a ticket in a basis has layers in two, whose widths are ranks; leave snap= out")
        if dense is None or plan is None:
            raise InvalidSetting("snap= moves the widths of a plan; pass the dense network and the plan as well")
        snapped = snap(pruned.small, plan, dense, job.snap, pruned.example, job.timer)
        if snapped.module is not pruned.small:
            lines["equality_error"] = check_cut(snapped.module, snapped.plan, dense, pruned.example)
            pruned = replace(pruned, small=snapped.module, plan=snapped.plan)
        if pruned.metric and not snapped.same_answers:
            pruned = replace(pruned, metric=replace(pruned.metric, value=None, split="not measured: widths were rounded down"))
    pruned = replace(pruned, provenance={**pruned.provenance, "snapped": snapped.way})
    return pruned, {**lines, "snapped": snapped.to_json()}


def summary(record: Mapping[str, Any]) -> list[str]:
    """What the widths became and, where measurements decided, what they were at first and again."""
    snapped = record["snapped"]
    if snapped["way"] == AS_IT_IS and not snapped["measured_fraction"]:
        return []
    tried = ", ".join(f"{way} {share:.1%}" for way, share in snapped["measured_fraction"].items())
    lines = [f"widths: {snapped['way']}{f' (of the dense network: {tried})' if tried else ''}"]
    if snapped["repeated_fraction"]:
        (_, own), (rival, other) = snapped["repeated_fraction"].items()
        lines.append(
            f"measured again: {own:.1%} of the dense network's time; {'a tie with' if snapped['tie'] else 'ahead of'} {rival}, {other:.1%}"
        )
    return lines


def snap(small: nn.Module, plan: PruningPlan, dense: nn.Module, how: Snap, example: Example, timer: RelativeTimer | None = None) -> Snapped:
    """`small`, which `plan` leaves of `dense`, at widths that are multiples of 16; or, by "auto", the fastest way and multiple.

    That up changes no answer is proven on `example`.

    Raises:
        InvalidSetting: no such way, no timer for "auto", or no way up. Disagreement: up changes an answer.
    """
    _check_way(how)
    if how != "auto":
        if how == "up" and _mixing(dense, plan):
            raise InvalidSetting("this network has norms over all channels, which channels of zeros would change; use snap=down")
        return _moved(small, plan, dense, how, USUAL, example)
    if timer is None:
        raise InvalidSetting("snap=auto measures candidates; say with timer= where")
    tried = [Snapped(small, plan, AS_IT_IS, {})]
    ways = ("down",) if _mixing(dense, plan) else ("up", "down")
    tried += [_moved(small, plan, dense, way, multiple, example) for way in ways for multiple in MULTIPLES]
    measured = {one.way: timer(one.module) for one in tried}
    best = _fastest(tried, measured)
    rival = _fastest([one for one in tried if one is not best], measured)
    again = {one.way: timer(one.module) for one in (best, rival)}
    if again[best.way] > (1 + TIE) * again[rival.way]:  # the first measurement was wrong
        best, rival = rival, best
    return replace(best, measured_fraction=measured, repeated_fraction={one.way: again[one.way] for one in (best, rival)})


def _fastest(tried: Sequence[Snapped], share: Mapping[str, float]) -> Snapped:
    """Of those that are as fast as the fastest, one with the ticket's answers."""
    least = min(share[one.way] for one in tried)
    same = [one for one in tried if one.same_answers and share[one.way] <= (1 + TIE) * least]
    return min(same or tried, key=lambda one: share[one.way])


def moved(small: nn.Module, plan: PruningPlan, dense: nn.Module, way: str) -> Snapped:
    """`small`, which `plan` leaves of `dense`, at the widths of an earlier `Snapped.way`, as in "down to 16". Raises InvalidFile."""
    direction, _, multiple = way.partition(" to ")
    if direction not in get_args(Snap)[:2] or not multiple.isdigit() or int(multiple) not in MULTIPLES:
        raise InvalidFile(
            f"the file says that its widths were moved {short(way)}; known are up and down to {', '.join(map(str, MULTIPLES))}"
        )
    return _at(small, plan, dense, direction, int(multiple))


def _mixing(dense: nn.Module, plan: PruningPlan) -> bool:
    """Whether a norm takes statistics over channels that `plan` cuts."""
    return any(m.axis == "each" and mixes(dense.get_submodule(m.layer)) for g in plan.groups if not g.frozen for m in g.members)


def _moved(small: nn.Module, plan: PruningPlan, dense: nn.Module, way: str, multiple: int, example: Example) -> Snapped:
    """`small` at other widths; that up changes no answer is proven on `example`."""
    found = _at(small, plan, dense, way, multiple)
    if found.same_answers:
        check_same("the network with channels of zeros and the one without", found.module, small, example)
    return found


def _at(small: nn.Module, plan: PruningPlan, dense: nn.Module, way: str, multiple: int) -> Snapped:
    move = _down if way == "down" else _up
    module, moved_plan = move(small, plan, dense, multiple)
    return Snapped(module.eval(), moved_plan, f"{way} to {multiple}", {})


def _down(small: nn.Module, plan: PruningPlan, dense: nn.Module, multiple: int) -> tuple[nn.Module, PruningPlan]:
    groups = plan.remaining()
    scores = criteria.score("l2", groups, small, Evidence(), "producers")
    kept: dict[str, tuple[int, ...]] = {}
    for tied in (b for b in tied_groups(groups) if not b.frozen):
        unit = _unit(tied, multiple, tied.steps)
        for group in tied.groups:
            best = scores[group.name].argsort(descending=True, stable=True)[: tied.channels(group, tied.steps // unit * unit)]
            kept[group.name] = tuple(sorted(best.tolist()))
    inner = PruningPlan(groups, kept)
    return cut(small, inner), plan.then(inner)


def _up(small: nn.Module, plan: PruningPlan, dense: nn.Module, multiple: int) -> tuple[nn.Module, PruningPlan]:
    kept: dict[str, tuple[int, ...]] = {}
    for tied in (b for b in tied_groups(plan.groups) if not b.frozen):
        first = tied.groups[0]
        steps = len(plan.kept[first.name]) * tied.steps // first.width
        unit = _unit(tied, multiple, tied.steps)
        wanted = min(tied.steps, -(-steps // unit) * unit)
        kept |= {group.name: _with_more(group, plan.kept[group.name], tied.channels(group, wanted)) for group in tied.groups}
    wider = PruningPlan(plan.groups, kept)
    return cut(embed(small, plan, dense), wider), wider


def _unit(tied: TiedGroups, multiple: int, steps: int) -> int:
    """The steps that make a multiple; of a smaller power of two where the layer is narrower."""
    while (unit := tied.aligned_steps(multiple)) > steps and multiple > 1:
        multiple //= 2
    return min(unit, steps)


def _with_more(group: Group, kept: tuple[int, ...], width: int) -> tuple[int, ...]:
    """`kept`, and the first of the dropped channels, `width` in all."""
    dropped = [c for c in range(group.width) if c not in set(kept)]
    return tuple(sorted((*kept, *dropped[: width - len(kept)])))
