"""Tied groups: groups that are cut together, in equal fractions. An untied group is a set of one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ltcompile.core.plan import Group


@dataclass(frozen=True)
class TiedGroups:
    """Groups that keep the same share of their channels. One step takes width / `steps` channels from each of them."""

    groups: tuple[Group, ...]

    @cached_property
    def steps(self) -> int:
        """The equal parts that every width falls into: the width itself in an untied group, the heads of a plain transformer."""
        return math.gcd(*(g.width for g in self.groups))

    @cached_property
    def filters_per_step(self) -> int:
        """How many filters go with one step."""
        return sum(self.channels(g, 1) * g.filters_per_channel for g in self.groups)

    @property
    def frozen(self) -> bool:
        return any(g.frozen for g in self.groups)

    @property
    def name(self) -> str:
        return self.groups[0].name

    def channels(self, group: Group, steps: int) -> int:
        """The channels of `group` in so many steps."""
        return group.width // self.steps * steps

    def steps_for(self, channels: Mapping[str, int]) -> int:
        """The fewest steps, of at least one, that keep so many channels of every group (by name; one where it is not named)."""
        needed = (min(g.width, channels.get(g.name, 1)) for g in self.groups)
        return max(1, *(-(-least * self.steps // g.width) for least, g in zip(needed, self.groups, strict=True)))

    def aligned_steps(self, align: int) -> int:
        """The number of steps whose multiples give every layer a multiple of `align` filters."""
        filters = (self.channels(g, len(m.index[0])) for g in self.groups for m in g.makers)
        return math.lcm(*(align // math.gcd(align, count) for count in filters))


def tied_groups(groups: Iterable[Group]) -> list[TiedGroups]:
    """`groups` as sets of tied ones, in the order of their first members."""
    together: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        together.setdefault(("tied", group.tied) if group.tied else ("alone", group.name), []).append(group)
    return [TiedGroups(tuple(members)) for members in together.values()]
