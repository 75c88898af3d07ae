"""The widths that planning by time considers, their values, and the time of a layer over many of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcompile.graph.tied_groups import TiedGroups
from ltcompile.graph.widths import Widths

Array = NDArray[np.float64]
CARE = 4  # the higher, the more the worst layers count
NOTHING = 1e-2  # a share as good as none
FINE, COARSE = 128, 8  # below FINE channels widths are multiples of 4 and less, above of COARSE


@dataclass(frozen=True)
class Wide:
    """A layer over the channels of more than two sets of tied groups."""

    over: tuple[int, ...]
    widths: Widths
    surface: Any
    owner: Mapping[str, int]
    channels: Mapping[str, int]
    fixed: Mapping[str, int]

    def ms(self, candidates: Sequence[NDArray[np.intp]], choice: Sequence[int], along: int | None = None) -> Array:
        """Milliseconds, for all candidates of the set `along` if one is named."""
        kept: dict[str, Any] = {
            g: self.channels[g] * (candidates[o] if o == along else candidates[o][choice[o]])
            for g in self.widths.groups
            if (o := self.owner.get(g)) is not None
        }
        return np.asarray(self.surface(*self.widths.of({**self.fixed, **kept})))


@functools.cache
def _multiples(width: int) -> tuple[int, ...]:
    """The widths that are considered, up to `width`."""
    fine = [w for w in range(1, min(width, FINE)) if w % 4 == 0 or w < 8]
    return (*fine, *range(FINE, width, COARSE), width)


def values_of(tied: TiedGroups, left: Array) -> Array:
    """Of plans in which the ranking leaves these shares of all filters; for each layer that makes the channels."""
    return -sum(len(g.makers) for g in tied.groups) * np.maximum(left, NOTHING) ** -CARE


def candidates_of(tied: TiedGroups, least: int, given: int | None) -> NDArray[np.intp]:
    """The numbers of steps that a set of tied groups may keep, rising."""
    if given is not None:
        return np.array([given])
    unit = tied.channels(tied.groups[0], 1)
    steps = {w // unit for w in _multiples(tied.steps * unit) if w % unit == 0}
    return np.array(sorted({least, *(s for s in steps if s > least)}))
