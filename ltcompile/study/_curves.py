"""Accuracy over sparsity, from the rows of searches: by seed, in points, and as series of a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal

from ltcompile.core.records import Trained
from ltcompile.core.study import Estimate, Look, Series
from ltcompile.study._statistics import estimate

Rows = Sequence[Trained]
Images = Literal["test", "val"]
Size = Literal["filters", "params", "macs"]


def levels(rows: Rows) -> list[int]:
    """The levels that a ticket was trained at."""
    return sorted({row.level for row in rows if row.arm == "ticket"})


def accuracy(rows: Rows, arm: str, level: int, images: Images = "test") -> dict[int, float]:
    """Seed -> accuracy in points; empty where the arm was not trained there, or not shown those images."""
    found = {r.seed: r.val_score if images == "val" else r.test_score for r in rows if (r.arm, r.level) == (arm, level)}
    return {seed: 100 * share for seed, share in sorted(found.items()) if share is not None}


def mean(rows: Rows, arm: str, level: int, images: Images = "test") -> Estimate:
    """Accuracy in points, over the seeds that have it."""
    return estimate(accuracy(rows, arm, level, images))


def cell(rows: Rows, arm: str, level: int, images: Images = "test") -> str:
    """Accuracy in points as a table's cell."""
    return spread(mean(rows, arm, level, images)) if accuracy(rows, arm, level, images) else "not tested"


def removed(rows: Rows, level: int, size: Size) -> float:
    """The share of the dense network's filters, parameters or MACs that is gone at a level, in percent; mean over seeds."""
    dense: int = next(getattr(row, size) for row in rows if row.arm == "dense")
    return 100 * (1 - fmean(getattr(r, size) for r in rows if (r.arm, r.level) == ("ticket", level)) / dense)


def curve(name: str, look: Look, colour: int, rows: Rows, arm: str, x: Callable[[int], float], images: Images = "test") -> Series:
    """Mean accuracy of `arm` with its interval at every level where it was trained, at `x` of that level."""
    found = {
        level: estimate([*accuracy(rows, arm, level, images).values()]) for level in levels(rows) if accuracy(rows, arm, level, images)
    }
    return series(name, look, colour, [x(level) for level in found], [*found.values()])


def series(name: str, look: Look, colour: int, x: Sequence[float], found: Sequence[Estimate]) -> Series:
    """Estimates at places on the other axis."""
    return Series(name, look, colour, [*x], [e.mean for e in found], [e.low for e in found], [e.high for e in found])


def band(name: str, colour: int, found: Estimate) -> Series:
    """A level line with its interval, across the whole figure."""
    return Series(name, "band", colour, [], [found.mean], [found.low], [found.high])


def percent(value: float) -> str:
    """A share in percent as a table's cell."""
    return f"{value:.1f}"


def spread(found: Estimate) -> str:
    """A mean in points as a table's cell, with half the width of its interval."""
    return f"{found.mean:.2f}" if found.high is None else f"{found.mean:.2f} ± {found.high - found.mean:.2f}"
