"""Rules by which a level of a search is picked, from its latency, metric and size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ltcompile.core.curve import Picked
from ltcompile.core.records import Measurement
from ltcompile.core.task import ACCURACY, Metric
from ltcompile.errors import InvalidSetting, unknown
from ltcompile.timing import is_tie

KNEE, WITHIN, SMALLEST = RULES = ("knee", "fastest-within", "smallest")
Again = Callable[[Sequence[str]], list[Measurement]]


@dataclass(frozen=True)
class Rule:
    """How a level is picked: "knee", "smallest", or "fastest-within" so many points of validation accuracy, or units of
    another metric.
    """

    name: str
    points: float | None = None

    def __post_init__(self) -> None:
        """Raises UnknownName, and InvalidSetting where points are missing, too many or none."""
        if self.name not in RULES:
            raise unknown("rule to pick by", self.name, list(RULES))
        if self.name != WITHIN and self.points is not None:
            raise InvalidSetting(f"{self.name} takes no points; leave them out")
        if self.name == WITHIN and (self.points is None or not 0 <= self.points <= 100):
            raise InvalidSetting(f"{WITHIN} takes the points of the validation metric that may be lost, 0 to 100, as in '{WITHIN} 0.5'")

    def __str__(self) -> str:
        return self.name if self.points is None else f"{self.name} {self.points:g}"

    @classmethod
    def parse(cls, text: str) -> Rule:
        """The rule in words: `knee`, `fastest-within 0.5` or `fastest-within=0.5`. Raises as a Rule does."""
        name, *rest = text.replace("=", " ").split() or [""]
        try:
            points = [float(word) for word in rest]
        except ValueError:
            points = [math.nan]
        if len(points) > 1:
            raise InvalidSetting(f"a rule takes one number at most, and {text!r} has {len(points)}; write '{WITHIN} 0.5'")
        return cls(name, *points)


@dataclass(frozen=True)
class Option:
    """A level as a rule sees it; level 0 is the dense network.

    `ms` is its median latency; `worth` its mean validation metric in the metric's units, as `Metric.worth` gives it: the larger, the better;
    `sound`: the search's verdict includes it.
    """

    level: int
    ms: float
    worth: float
    macs: int
    sound: bool = False

    @property
    def name(self) -> str:
        return f"ticket-{self.level}" if self.level else "dense"


def pareto_front(options: Iterable[Option]) -> list[Option]:
    """The Pareto front, from the fastest to the most accurate: no other option is as fast and as accurate as one of these, or better."""
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (o.ms, -o.worth, o.level)):
        if not found or option.worth > found[-1].worth:
            found.append(option)
    return found


def choose(rule: Rule, options: Sequence[Option], metric: Metric = ACCURACY) -> tuple[Option | None, str]:
    """The ticket that `rule` picks, if it picks one, and the reason. Ties go to the faster, then to the lower level.

    The knee is the ticket on the Pareto front that lies farthest above the line between the front's ends, with both axes scaled to
    [0, 1]: Kneedle (Satopaa et al. 2011, "Finding a 'Kneedle' in a Haystack") on a front. Below the line nothing
    pays: where no ticket is above it, an end of the front is taken that is one, the more accurate first.
    """
    tickets = [option for option in options if option.level]
    if rule.name == SMALLEST:
        fit = [o for o in tickets if o.sound]
        smallest = min(fit, key=lambda o: (o.macs, o.ms, o.level), default=None)
        return (smallest, "it has the fewest MACs of the levels that the verdict includes" if smallest else "the verdict includes no level")
    if rule.name == WITHIN:
        return _fastest_within(rule.points or 0.0, options, tickets, metric)
    return _knee(pareto_front(options))


def _fastest_within(points: float, options: Sequence[Option], tickets: list[Option], metric: Metric) -> tuple[Option | None, str]:
    dense = _dense(options)
    allowed = f"at most {points:g} {metric.unit} of validation {metric.name} below dense"
    fit = [o for o in tickets if below(o, dense) <= points]
    fastest = min(fit, key=lambda o: (o.ms, o.level), default=None)
    if fastest is not None:
        return fastest, f"it is the fastest that is {allowed}"
    closest = min(tickets, key=lambda o: (below(o, dense), o.level), default=None)
    closest_misses = (
        f"; the closest, level {closest.level}, misses that by {below(closest, dense) - points:.2g} {metric.unit}" if closest else ""
    )
    return None, f"no level is {allowed}{closest_misses}"


def runner_up(rule: Rule, options: Sequence[Option], chosen: Option) -> Option | None:
    """The option that `rule` would pick without `chosen`, where it picks by speed alone."""
    return choose(rule, [o for o in options if o != chosen])[0] if rule.name == WITHIN else None


def missed_by(rule: Rule, options: Sequence[Option]) -> float | None:
    """How many units more than the rule allows the best level loses, where there is a level and it loses more."""
    losses = [below(o, _dense(options)) - (rule.points or 0.0) for o in options if o.level]
    return min(losses) if rule.name == WITHIN and losses and min(losses) > 0 else None


def _dense(options: Sequence[Option]) -> Option:
    return next(o for o in options if not o.level)


def below(option: Option, dense: Option) -> float:
    """By how many units `option` is worse than `dense`, to a billionth: less is rounding."""
    return round(dense.worth - option.worth, 9)


def _knee(ends: list[Option]) -> tuple[Option | None, str]:
    if not any(o.level for o in ends):
        return None, "the dense network is as fast and as accurate as every ticket"
    distances = {o: above_line(o, ends) for o in ends if o.level}
    knee = max(distances, key=lambda o: (distances[o], o.worth))
    if len(ends) == 1:
        return knee, "it is both the fastest and the most accurate"
    between = " and ".join(f"level {o.level}" if o.level else "dense" for o in (ends[0], ends[-1]))
    line = f"above the line between the ends of the Pareto front ({between}), axes scaled to [0, 1]"
    if knee in (ends[0], ends[-1]):
        return knee, f"it is an end of the front itself: no ticket lies {line}"
    return knee, f"it lies farthest, {distances[knee]:.2f}, {line}"


def above_line(option: Option, ends: Sequence[Option]) -> float:
    """How far an option lies above the line from the first to the last of a front, both axes scaled to [0, 1] over it."""
    first, last = ends[0], ends[-1]
    if first == last:
        return 0.0
    fast = (option.ms - first.ms) / (last.ms - first.ms)
    good = (option.worth - first.worth) / (last.worth - first.worth)
    return (good - fast) / math.sqrt(2)


def pick_by(rule: Rule, options: Sequence[Option], row: Measurement, again: Again, metric: Metric = ACCURACY) -> Picked:
    """What `rule` picks where `row` was timed, with figures of a fresh run: the run that picks a winner is biased in its favour.

    `again` times networks by name, with speedups over the first of them. Where the fresh run says with its whole interval that the runner-up
    is faster, that is picked.
    """
    chosen, reason = choose(rule, options, metric)
    place: dict[str, Any] = {"rule": str(rule), "runtime": row.runtime, "device": row.device, "batch": row.batch, "checksum": None}
    if chosen is None:
        return Picked(**place, name=None, level=None, reason=reason, missed_by_points=missed_by(rule, options))
    rival = runner_up(rule, options, chosen)
    ms, ratios = _again(again, chosen, rival)
    if rival is not None and ratios[rival.name][2] < 1:  # the run that picked it was wrong, by the whole interval
        chosen, rival, reason = rival, chosen, f"{reason}, measured again"
        ms, ratios = _again(again, chosen, rival)
    speedup, low, high = ratios["dense"]
    lead = None if rival is None else ratios[rival.name]
    return Picked(
        **place,
        name=chosen.name,
        level=chosen.level,
        reason=reason,
        ms_p50=ms,
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        runner_up=None if rival is None else rival.name,
        lead=lead and lead[0],
        lead_low=lead and lead[1],
        lead_high=lead and lead[2],
        tie=lead is not None and is_tie(lead),
    )


def _again(again: Again, chosen: Option, rival: Option | None) -> tuple[float, dict[str, tuple[float, float, float]]]:
    """Median milliseconds of `chosen` in a fresh run, and how many times as long each other network takes there, with its interval."""
    rows = again([chosen.name, "dense", *([rival.name] if rival else [])])
    return rows[0].ms_p50, {
        row.subject: (1 / row.speedup, 1 / row.speedup_high, 1 / row.speedup_low)
        for row in rows
        if row.speedup and row.speedup_low and row.speedup_high
    }
