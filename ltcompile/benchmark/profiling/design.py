"""At which widths a network is timed: few runs, in which every layer meets every pair of levels.

Bundles of groups that meet in a layer get different colours. An orthogonal array of strength two (Bose 1938: lines over a prime field)
gives colours their levels, so that with 7 levels 49 runs hold all 49 pairs of any two colours.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from ltcompile.graph.bundle import Bundle
from ltcompile.graph.widths import Widths

SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)  # of the whole width; as many as a prime
BELOW = (0, 1, 2, 4, 8)  # channels below an edge: widths that 16, 1, 2, 4 and 8 divide and no more; as many as a prime
BASES = (0.5, 1.0, 0.25, 0.75)  # shares of the whole width, below which they lie in turns
EDGE = 16
CHECKS = 8
Kept = dict[str, int]  # group -> channels


def colours(bundles: Sequence[Bundle], layers: Iterable[Widths]) -> list[int]:
    """A colour for each bundle, unlike those of the bundles that it meets in a layer."""
    owner = {g.name: i for i, bundle in enumerate(bundles) for g in bundle.groups}
    meets: list[set[int]] = [set() for _ in bundles]
    for widths in layers:
        together = {owner[name] for name in widths.groups if name in owner}
        for i in together:
            meets[i] |= together - {i}
    found: list[int] = []
    for i in range(len(bundles)):
        taken = {found[j] for j in meets[i] if j < i}
        found.append(next(c for c in range(len(bundles)) if c not in taken))
    return found


def pairs(levels: int) -> list[list[int]]:
    """The orthogonal array: levels^2 rows of levels + 1 columns, every two of which hold every pair once."""
    return [[*((i + c * j) % levels for c in range(levels)), j] for i in range(levels) for j in range(levels)]


def grid(bundles: Sequence[Bundle], colour: Sequence[int]) -> list[Kept]:
    """Widths that suit hardware, from the whole to a sixteenth; the whole network comes first."""
    return [
        _kept(bundles, [_level(b, SHARES[row[c % len(row)]]) for b, c in zip(bundles, colour, strict=True)]) for row in pairs(len(SHARES))
    ]


def small(bundles: Sequence[Bundle]) -> Kept:
    """A quarter of all widths."""
    return _kept(bundles, [_level(b, 0.25) for b in bundles])


def below_edges(bundles: Sequence[Bundle], colour: Sequence[int]) -> list[Kept]:
    """Widths just below edges, all along the way down."""
    found = []
    for run, row in enumerate(pairs(len(BELOW))):
        base = BASES[run % len(BASES)]
        found.append(_kept(bundles, [_below(b, base, BELOW[row[c % len(row)]]) for b, c in zip(bundles, colour, strict=True)]))
    return found


def held_back(bundles: Sequence[Bundle], seed: int = 0) -> list[Kept]:
    """Networks as plans leave them, to hold the law against: every second one rounded to 16."""
    dice = random.Random(seed)
    found = []
    for run in range(CHECKS):
        about = dice.uniform(0.15, 0.8)
        steps = [min(b.steps, max(1, round(b.steps * min(1.0, about * dice.uniform(0.6, 1.5))))) for b in bundles]
        found.append(_kept(bundles, [_nearest(b, s) if run % 2 else s for b, s in zip(bundles, steps, strict=True)]))
    return found


def _level(bundle: Bundle, share: float) -> int:
    return bundle.steps if share == 1.0 else _nearest(bundle, bundle.steps * share)


def _nearest(bundle: Bundle, steps: float) -> int:
    """The nearest number of steps whose widths are multiples of 16, or of a smaller power of two where that is too coarse."""
    multiple = EDGE
    while multiple > max(1.0, steps * _unit(bundle)):
        multiple //= 2
    unit = bundle.aligned_steps(multiple)
    return min(bundle.steps, max(1, round(steps / unit) * unit)) if unit <= bundle.steps else max(1, round(steps))


def _unit(bundle: Bundle) -> int:
    """The channels in one step."""
    return bundle.channels(bundle.groups[0], 1)


def _below(bundle: Bundle, base: float, channels: int) -> int:
    return max(1, _level(bundle, base) - (channels if _unit(bundle) == 1 else 0))


def _kept(bundles: Sequence[Bundle], steps: Sequence[int]) -> Kept:
    return {g.name: b.channels(g, s) for b, s in zip(bundles, steps, strict=True) for g in b.groups}
