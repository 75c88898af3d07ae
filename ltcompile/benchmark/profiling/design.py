"""At which widths a network is timed: few runs, in which every layer meets every pair of levels.

Sets of tied groups that share a layer get different colours. An orthogonal array of strength two (Bose 1938: lines over a prime field)
gives colours their levels, so that with 7 levels 49 runs hold all 49 pairs of any two colours.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from ltcompile.graph.tied_groups import TiedGroups
from ltcompile.graph.widths import Widths

SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)  # of the whole width; as many as a prime
BELOW = (0, 1, 2, 4, 8)  # channels below an edge: widths that 16, 1, 2, 4 and 8 divide and no more; as many as a prime
BASES = (0.5, 1.0, 0.25, 0.75)  # shares of the whole width, below which they lie in turns
EDGE = 16
CHECKS = 8
Kept = dict[str, int]  # group -> channels


def colours(tied_groups: Sequence[TiedGroups], layers: Iterable[Widths]) -> list[int]:
    """A colour for each set of tied groups, different from those of the sets that it shares a layer with."""
    owner = {g.name: i for i, tied in enumerate(tied_groups) for g in tied.groups}
    meets: list[set[int]] = [set() for _ in tied_groups]
    for widths in layers:
        together = {owner[name] for name in widths.groups if name in owner}
        for i in together:
            meets[i] |= together - {i}
    found: list[int] = []
    for i in range(len(tied_groups)):
        taken = {found[j] for j in meets[i] if j < i}
        found.append(next(c for c in range(len(tied_groups)) if c not in taken))
    return found


def pairs(levels: int) -> list[list[int]]:
    """The orthogonal array: levels^2 rows of levels + 1 columns, every two of which hold every pair once."""
    return [[*((i + c * j) % levels for c in range(levels)), j] for i in range(levels) for j in range(levels)]


def grid(tied_groups: Sequence[TiedGroups], colour: Sequence[int]) -> list[Kept]:
    """Widths that suit hardware, from the whole to a sixteenth; the whole network comes first."""
    return [
        _kept(tied_groups, [_level(b, SHARES[row[c % len(row)]]) for b, c in zip(tied_groups, colour, strict=True)])
        for row in pairs(len(SHARES))
    ]


def small(tied_groups: Sequence[TiedGroups]) -> Kept:
    """A quarter of all widths."""
    return _kept(tied_groups, [_level(b, 0.25) for b in tied_groups])


def half(tied_groups: Sequence[TiedGroups]) -> Kept:
    """Half of all widths, rounded down."""
    return _kept(tied_groups, [max(1, b.steps // 2) for b in tied_groups])


def below_edges(tied_groups: Sequence[TiedGroups], colour: Sequence[int]) -> list[Kept]:
    """Widths just below edges, all along the way down."""
    found = []
    for run, row in enumerate(pairs(len(BELOW))):
        base = BASES[run % len(BASES)]
        found.append(_kept(tied_groups, [_below(b, base, BELOW[row[c % len(row)]]) for b, c in zip(tied_groups, colour, strict=True)]))
    return found


def held_back(tied_groups: Sequence[TiedGroups]) -> list[Kept]:
    """Networks as plans leave them, to hold the law against: every second one rounded to 16."""
    rng = random.Random(0)
    found = []
    for run in range(CHECKS):
        about = rng.uniform(0.15, 0.8)
        steps = [min(b.steps, max(1, round(b.steps * min(1.0, about * rng.uniform(0.6, 1.5))))) for b in tied_groups]
        found.append(_kept(tied_groups, [_nearest(b, s) if run % 2 else s for b, s in zip(tied_groups, steps, strict=True)]))
    return found


def _level(tied: TiedGroups, share: float) -> int:
    return tied.steps if share == 1.0 else _nearest(tied, tied.steps * share)


def _nearest(tied: TiedGroups, steps: float) -> int:
    """The nearest number of steps whose widths are multiples of 16, or of a smaller power of two where that is too coarse."""
    multiple = EDGE
    while multiple > max(1.0, steps * _unit(tied)):
        multiple //= 2
    unit = tied.aligned_steps(multiple)
    return min(tied.steps, max(1, round(steps / unit) * unit)) if unit <= tied.steps else max(1, round(steps))


def _unit(tied: TiedGroups) -> int:
    """The channels in one step."""
    return tied.channels(tied.groups[0], 1)


def _below(tied: TiedGroups, base: float, channels: int) -> int:
    return max(1, _level(tied, base) - (channels if _unit(tied) == 1 else 0))


def _kept(tied_groups: Sequence[TiedGroups], steps: Sequence[int]) -> Kept:
    return {g.name: b.channels(g, s) for b, s in zip(tied_groups, steps, strict=True) for g in b.groups}
