"""What a search is asked to do, checked before anything is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ltcompile import criteria, rewind
from ltcompile.core.plan import Group
from ltcompile.core.records import Record
from ltcompile.errors import BadSetting, unknown
from ltcompile.finding.choose import Scope

PruneSchedule = Literal["iterative", "oneshot"]


@dataclass(frozen=True)
class SearchConfig(Record):
    """Rounds of train, score, prune, rewind.

    A ticket is "not inferior" if the lower bound of (its validation accuracy - the dense network's) lies above
    -`margin_points`; `min_share` of its filters is the least that a layer keeps. `masked` runs the classical search that only
    zeroes what a round drops: slow, the reference for the real one.
    """

    rewind: str = "lr"
    rewind_epoch: int = 0
    scope: Scope = "global"
    schedule: PruneSchedule = "iterative"
    criterion: str = "l1"
    rounds: int = 8
    rate: float = 0.2
    align: int = 1
    min_share: float = 0.05
    seed: int = 0
    seeds: int = 1
    controls: bool = True
    masked: bool = False
    margin_points: float = 0.5
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for kind, name, known in (("rewinding", self.rewind, rewind.names()), ("criterion", self.criterion, criteria.names())):
            if name not in known:
                raise unknown(kind, name, known)
        checks = {
            f"the rate is the share cut in each round, between 0 and 1, not {self.rate}": 0 < self.rate < 1,
            f"rounds must be at least 1, not {self.rounds}": self.rounds >= 1,
            f"seeds must be at least 1, not {self.seeds}": self.seeds >= 1,
            f"the first seed must not be negative: {self.seed}": self.seed >= 0,
            f"the rewind epoch must not be negative: {self.rewind_epoch}": self.rewind_epoch >= 0,
            f"--rewind-epoch belongs to --rewind weight, not to {self.rewind}": self.rewind == "weight" or self.rewind_epoch == 0,
            f"widths must be multiples of at least 1, not {self.align}": self.align >= 1,
            f"the least share of a layer must be in [0, 1), not {self.min_share}": 0 <= self.min_share < 1,
            f"the confidence must be between 0.5 and 1, not {self.confidence}": 0.5 < self.confidence < 1,
            f"the margin must not be negative: {self.margin_points}": self.margin_points >= 0,
            f"scope must be one of {', '.join(get_args(Scope))}, not {self.scope!r}": self.scope in get_args(Scope),
            f"schedule must be one of {', '.join(get_args(PruneSchedule))}, not {self.schedule!r}": self.schedule
            in get_args(PruneSchedule),
        }
        for message, holds in checks.items():
            if not holds:
                raise BadSetting(message)

    @property
    def shares(self) -> list[float]:
        """The share of the surviving filters that each level drops: one entry a level."""
        return [self.rate] * self.rounds if self.schedule == "iterative" else [1 - (1 - self.rate) ** self.rounds]

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    def floors(self, groups: tuple[Group, ...]) -> dict[str, int]:
        """Group -> the channels that it keeps at least."""
        return {g.name: max(1, math.ceil(self.min_share * g.width)) for g in groups}

    def check_fits(self, groups: tuple[Group, ...]) -> None:
        """Raises BadSetting where the rounds would empty a layer, or leave less than all the floors together."""
        left = (1 - self.rate) ** self.rounds
        free = [g for g in groups if not g.frozen]
        floors = self.floors(groups)
        if self.scope == "local":
            thin = min(free, key=lambda g: g.width)
            if thin.width * left < 1:
                most = int(math.log(1 / thin.width) / math.log(1 - self.rate))
                raise BadSetting(
                    f"{self.rounds} rounds at rate {self.rate} would empty {thin.name!r} ({thin.width} filters); "
                    f"at most {most} rounds do not, or prune with --scope global"
                )
            return
        total = sum(g.width * g.filters_per_channel for g in free)
        least = sum(floors[g.name] * g.filters_per_channel for g in free)
        if total * left < least:
            most = int(math.log(least / total) / math.log(1 - self.rate))
            raise BadSetting(
                f"{self.rounds} rounds at rate {self.rate} would leave {total * left:.0f} of {total} filters, fewer than the floors of all "
                f"layers together ({least}) and so empty a layer; at most {most} rounds, or a smaller --min-share than {self.min_share}"
            )
