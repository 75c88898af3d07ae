"""The time of one layer over the widths that it reads and makes, from samples: monotone, with stairs at powers of two.

    ms(x, y) = grid(ceil_p(x), ceil_q(y)) * slow[v(x)][v(y)]

`grid` goes through the medians of what was measured, linearly between; p and q are the blocks that hardware rounds widths up to; v is how
often 2 divides a width (at most 4), and `slow` what an unfit width costs beyond rounding: one channel past an edge can take a whole
layer off the fast path.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]
BLOCKS = (1, 2, 4, 8, 16, 32)
CLASSES = 5  # of widths: odd, and those that 2, 4, 8 and 16 divide
MEASURED_SHARE = 0.5  # of a grid's places; where fewer were measured, only the smooth law is used


@dataclass(frozen=True)
class Sample:
    """One timing of one layer: widths read and made, milliseconds."""

    read: int
    made: int
    ms: float


class Grid:
    """Times between widths that suit the hardware; non-decreasing in both."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        x, y, t = (np.array([getattr(s, name) for s in samples], dtype=float) for name in ("read", "made", "ms"))
        self._law = nnls(_terms(x, y) / t[:, None], np.ones(len(t)))[0]  # least squares of relative errors
        self._x, self._y = np.unique(x), np.unique(y)
        cells = {(i, j): t[(x == self._x[i]) & (y == self._y[j])] for i in range(len(self._x)) for j in range(len(self._y))}
        smooth = self._smooth(*np.meshgrid(self._x, self._y, indexing="ij"))
        table = np.array([[np.median(c) if len(c := cells[i, j]) else np.nan for j in range(len(self._y))] for i in range(len(self._x))])
        measured = np.isfinite(table)
        self._table = _monotone(_filled(table / smooth) * smooth) if measured.mean() >= MEASURED_SHARE else None

    def __call__(self, x: Any, y: Any) -> Array:
        """Milliseconds at widths `x` and `y`, which broadcast."""
        x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
        if self._table is None:
            return self._smooth(x, y)
        inside = np.clip(x, self._x[0], self._x[-1]), np.clip(y, self._y[0], self._y[-1])
        beyond = self._smooth(x, y) / self._smooth(*inside)  # widths outside follow the smooth law
        return np.asarray(_bilinear(self._x, self._y, self._table, *inside) * beyond)

    def _smooth(self, x: Array, y: Array) -> Array:
        return np.asarray(np.maximum(_terms(x, y) @ self._law, 1e-9))


def _terms(x: Array, y: Array) -> Array:
    """A launch, reading, writing and multiplying: (..., 4)."""
    return np.stack([np.ones_like(x), x, y, x * y], axis=-1)


def _filled(ratios: Array) -> Array:
    """`ratios` with its gaps filled by the geometric means of their rows and columns."""
    logs = np.log(ratios)
    mean = np.nanmean(logs)
    rows = np.array([np.nanmean(r) if np.isfinite(r).any() else mean for r in logs])
    columns = np.array([np.nanmean(c) if np.isfinite(c).any() else mean for c in logs.T])
    guess = (rows[:, None] + columns[None, :]) / 2
    return np.asarray(np.exp(np.where(np.isfinite(logs), logs, guess)))


def _monotone(table: Array) -> Array:
    """The mean of the least non-decreasing table above and the largest below: noise is as likely to go either way."""
    for axis in (0, 1):
        above = np.maximum.accumulate(table, axis)
        below = np.flip(np.minimum.accumulate(np.flip(table, axis), axis), axis)
        table = (above + below) / 2
    return table


def _bilinear(xs: Array, ys: Array, table: Array, x: Array, y: Array) -> Array:
    i, u = _between(xs, x)
    j, v = _between(ys, y)
    i1, j1 = np.minimum(i + 1, len(xs) - 1), np.minimum(j + 1, len(ys) - 1)
    low = table[i, j] * (1 - v) + table[i, j1] * v
    high = table[i1, j] * (1 - v) + table[i1, j1] * v
    return np.asarray(low * (1 - u) + high * u)


def _between(knots: Array, x: Array) -> tuple[NDArray[np.intp], Array]:
    """The knot at or below `x`, and how far `x` is on the way to the next."""
    i = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, max(len(knots) - 2, 0))
    if len(knots) == 1:
        return i, np.zeros_like(x)
    return i, (x - knots[i]) / (knots[i + 1] - knots[i])


@dataclass(frozen=True)
class Stairs:
    """What widths that do not suit the hardware cost layers of one kind: blocks of the widths read and made, and the table `slow`."""

    read_block: int = 1
    made_block: int = 1
    slow: Array = field(default_factory=lambda: np.ones((CLASSES, CLASSES)))


@dataclass(frozen=True)
class Surface:
    """Milliseconds of one layer. `reads` and `makes` tell whether these widths can change at all: what cannot has no stairs."""

    grid: Grid
    stairs: Stairs
    reads: bool
    makes: bool

    def __call__(self, x: Any, y: Any) -> Array:
        x, y = np.asarray(x), np.asarray(y)
        on_edge = self.grid(_up(x, self.stairs.read_block * self.reads), _up(y, self.stairs.made_block * self.makes))
        return np.asarray(on_edge * self.stairs.slow[_fitness(x, self.reads), _fitness(y, self.makes)])


def fit_stairs(layers: Sequence[tuple[Grid, bool, bool, Sequence[Sample]]]) -> Stairs:
    """The stairs of layers of one kind, from samples at widths beside the grid: each layer is (grid, reads, makes, samples)."""
    kept = [(grid, reads, makes, s) for grid, reads, makes, samples in layers for s in samples]
    if not kept:
        return Stairs()
    found = [(blocks, *_slow(kept, *blocks)) for blocks in itertools.product(BLOCKS, BLOCKS)]
    blocks, slow, _ = min(found, key=lambda f: f[2])
    return Stairs(*blocks, slow)


def _slow(kept: Sequence[tuple[Grid, bool, bool, Sample]], read_block: int, made_block: int) -> tuple[Array, float]:
    """The median cost of each class of widths beyond these blocks, beside that of widths that suit the hardware; the mean error left."""
    errors: dict[tuple[int, int], list[float]] = {}
    for grid, reads, makes, s in kept:
        on_edge = float(grid(_up(np.asarray(s.read), read_block * reads), _up(np.asarray(s.made), made_block * makes)))
        place = int(_fitness(np.asarray(s.read), reads)), int(_fitness(np.asarray(s.made), makes))
        errors.setdefault(place, []).append(float(np.log(s.ms / on_edge)))
    # Not beside the grid: those runs are of other networks, whose weights fill other caches.
    suits = np.median(errors.get((CLASSES - 1, CLASSES - 1), [0.0]))
    slow = np.ones((CLASSES, CLASSES))
    for place, values in errors.items():
        slow[place] = np.exp(np.median(values) - suits)
    left = float(np.mean([abs(v - np.median(values)) for values in errors.values() for v in values]))
    return slow, left


def _up(width: Any, block: int) -> Any:
    """`width` rounded up to a multiple of `block`; as it is where that is 0."""
    return width if block <= 1 else -(-width // block) * block


def _fitness(width: Any, varies: bool) -> Any:
    """How often 2 divides the width, at most CLASSES - 1 times; the most for one that cannot change."""
    if not varies:
        return np.full(np.shape(width), CLASSES - 1)
    return np.minimum(np.log2(np.asarray(width) & -np.asarray(width)).astype(int), CLASSES - 1)
