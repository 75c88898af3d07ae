"""The time of one layer over the widths that it reads and makes, from samples: monotone, with steps of alignment at powers of two.

    ms(x, y) = max(g, penalty[v(x)][v(y)] * g)                           with g = grid(ceil_p(x), ceil_q(y))
    ms(x, y) = max(g, launch + penalty[v(x)][v(y)] * rate * x * y)       where that fits the layers of a kind better

`grid` goes through the medians of what was measured, linearly between; p and q are the blocks that hardware rounds widths up to; v is how
often 2 divides a width (at most 4), and `penalty` what an unfit width costs beyond rounding: one channel past an edge can take a whole
layer off the fast path. By the second law it is the arithmetic that is slower, at the best `rate` of all widths: layers that wait for
their weights anyway do not notice (a roofline: Williams et al. 2009).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]
BLOCKS = (1, 2, 4, 8, 16, 32)
CLASSES = 5  # of widths: odd, and those that 2, 4, 8 and 16 divide
PENALTIES = np.geomspace(1.0, 8.0, 105)  # that unfit widths may be: each 2 % more than the last
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

    @functools.cached_property
    def launch(self) -> float:
        """What a layer without channels would take, in milliseconds."""
        return 0.0 if self._table is None else float(self._law[0])

    def arithmetic(self, x: Any, y: Any) -> Array:
        """Milliseconds beyond the launch at the best rate of all widths; where too few of them were measured, all of the time."""
        return self(x, y) if self._rate is None else np.asarray(self._rate * x * y)

    @functools.cached_property
    def _rate(self) -> float | None:
        """Milliseconds for a channel read and one made."""
        if self._table is None:
            return None
        return float(np.maximum((self._table - self.launch) / np.outer(self._x, self._y), 0.0).min())

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
class Alignment:
    """What widths that do not suit the hardware cost layers of one kind: blocks of the widths read and made, the table `penalty`, and whether
    it is the arithmetic alone that is slower."""

    read_block: int = 1
    made_block: int = 1
    penalty: Array = field(default_factory=lambda: np.ones((CLASSES, CLASSES)))
    roofline: bool = False


@dataclass(frozen=True)
class Surface:
    """Milliseconds of one layer. `reads` and `makes` are whether these widths can change at all: what cannot has no steps."""

    grid: Grid
    alignment: Alignment
    reads: bool
    makes: bool

    def __call__(self, x: Any, y: Any) -> Array:
        return self.penalised(x, y, self.alignment.penalty[self.classes(x, y)])

    def penalised(self, x: Any, y: Any, penalty: Any) -> Array:
        """With widths that cost so many times as much as those that suit the hardware."""
        x, y = _up(x, self.alignment.read_block * self.reads), _up(y, self.alignment.made_block * self.makes)
        suits = self.grid(x, y)
        unfit = self.grid.launch + penalty * self.grid.arithmetic(x, y) if self.alignment.roofline else penalty * suits
        return np.asarray(np.maximum(suits, unfit))

    def classes(self, x: Any, y: Any) -> tuple[Any, Any]:
        return _class(x, self.reads), _class(y, self.makes)


def fit_alignment(layers: Sequence[tuple[Grid, bool, bool, Sequence[Sample]]]) -> Alignment:
    """The alignment of layers of one kind, from samples at widths off the grid: each layer is (grid, reads, makes, samples)."""
    sampled = [layer for layer in layers if layer[-1]]
    if not sampled:
        return Alignment()
    laws = itertools.product(BLOCKS, BLOCKS, (False, True))
    found = [_fitted(sampled, Alignment(read_block, made_block, roofline=roofline)) for read_block, made_block, roofline in laws]
    return min(found, key=lambda f: f[1])[0]


def _fitted(layers: Sequence[tuple[Grid, bool, bool, Sequence[Sample]]], bare: Alignment) -> tuple[Alignment, float]:
    """`bare` with the table that fits the samples best, and the mean error left, of logarithms."""
    places, measured, laws = [], [], []
    for grid, reads, makes, samples in layers:
        x, y = (np.array([getattr(s, name) for s in samples]) for name in ("read", "made"))
        surface = Surface(grid, bare, reads, makes)
        places.append(np.ravel_multi_index(surface.classes(x, y), bare.penalty.shape))
        measured.append(np.log([s.ms for s in samples]))
        laws.append(np.log(surface.penalised(x, y, PENALTIES[:, None])))  # (PENALTIES, samples)
    place, excess = np.concatenate(places), np.concatenate(measured) - np.concatenate(laws, axis=1)
    # Relative to their own median, not to the grid: those runs are of other networks, whose weights fill other caches.
    suits = place == bare.penalty.size - 1
    errors = np.abs(excess - (np.median(excess[0, suits]) if suits.any() else 0.0))
    table, left = np.ones(bare.penalty.size), float(errors[0, suits].sum())
    for unfit in set(place[~suits]):
        lost = errors[:, place == unfit].sum(1)
        table[unfit] = PENALTIES[lost.argmin()]
        left += float(lost.min())
    return replace(bare, penalty=table.reshape(bare.penalty.shape)), left / len(place)


def _up(width: Any, block: int) -> Any:
    """`width` rounded up to a multiple of `block`, narrower ones to a power of two, as the grid has them; as it is where `block` is 0."""
    if block <= 1:
        return width
    return np.where(np.asarray(width) < block, _power_above(width), -(-np.asarray(width) // block) * block)


def _power_above(width: Any) -> Any:
    return 2 ** np.ceil(np.log2(width)).astype(int)


def _class(width: Any, varies: bool) -> Any:
    """How often 2 divides the width, at most CLASSES - 1 times; the most for powers of two, which the grid has, and for what cannot change."""
    width = np.asarray(width)
    if not varies:
        return np.full(width.shape, CLASSES - 1)
    odd = width // (width & -width)
    return np.where(odd == 1, CLASSES - 1, np.minimum(np.log2(width & -width).astype(int), CLASSES - 1))
