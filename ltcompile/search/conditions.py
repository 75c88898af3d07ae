"""When a ticket is a winning one: the five conditions of Ma et al. 2021, "Sanity Checks for Lottery Tickets" (arXiv:2107.00166).

1  the sparsity is not trivial, and training is long enough: longer training does not change the dense network by more than "about";
2  the small dense network (same size, no ticket) is clearly worse;
3  the ticket at some learning rate beats random re-initialisation at any;
4  the ticket is about as good as the dense network at the same learning rate;
5  the ticket is about as good as the dense network with its best recipe.

All five are the jackpot, the first four the secondary prize. In structured pruning the small dense network has the ticket's own
architecture: 2 and 3 use the same control, and differ in the required margin. Means over seeds of the task's metric on validation items.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ltcompile.core.records import Trained
from ltcompile.core.task import ACCURACY, Metric

NONTRIVIAL_SHARE = 0.5  # of the MACs, or of a mask's weights: less is not called a sparse ticket
ABOUT_POINTS = {"cifar10": 0.5, "cifar100": 1.0, "tinyimagenet": 1.0, "tinyimagenet200": 1.0, "imagenet": 1.5, "imagenet1k": 1.5}
USUAL_POINTS = 0.5
CONTROLS = ("random", "reinit")

Prize = Literal["jackpot", "secondary prize", "none", "not tested"]


@dataclass(frozen=True)
class Margins:
    """In points of accuracy: "about as good" is at most `about` worse, "clearly" is more than `clearly`."""

    about: float = USUAL_POINTS
    clearly: float = USUAL_POINTS


def margins_of(data: str) -> Margins:
    """Ma et al.'s margins for a data set by its name; those of CIFAR-10 for one that they did not use."""
    plain = re.sub(r"[^a-z0-9]", "", re.split(r"[:/]", data.lower().rstrip("/"))[-1])
    return Margins(about=ABOUT_POINTS.get(plain, USUAL_POINTS))


@dataclass(frozen=True)
class Conditions:
    """Each condition by its number: whether it is met (None: not tested), and why."""

    flags: dict[str, bool | None]
    reasons: dict[str, str]

    @property
    def prize(self) -> Prize:
        return prize(self.flags)


def prize(flags: dict[str, bool | None]) -> Prize:
    """What the conditions that are met are worth."""
    first = [flags.get(str(number)) for number in range(1, 5)]
    if False in first:
        return "none"
    if None in first or flags.get("5") is None:
        return "not tested"
    return "jackpot" if flags["5"] else "secondary prize"


def conditions_met(
    rows: Sequence[Trained], level: int, margins: Margins, others: Sequence[Sequence[Trained]] = (), metric: Metric = ACCURACY
) -> Conditions:
    """The conditions of the ticket at `level` of a search, among searches of the same network at `others` learning rates.

    Every search has its rows: dense, the ticket, and as far as they were trained the controls at `level` and the dense network with the
    ticket's whole budget.
    """
    searches, unit = [rows, *others], metric.unit
    dense, ticket = mean_worth(rows, "dense", 0, metric), mean_worth(rows, "ticket", level, metric)
    budgets = [_mean_of(each, "dense_budget", metric) for each in searches]
    gone, what = removed(arm(rows, "dense", 0)[0], arm(rows, "ticket", level))
    met: dict[str, tuple[bool | None, str]] = {str(n): (None, "needs the control arms") for n in range(1, 6)}
    if budgets[0] is not None:
        gain = budgets[0] - dense
        met["1"] = (
            gone >= NONTRIVIAL_SHARE and gain <= margins.about,
            f"{gone:.1%} of the {what} removed; training on changes the dense network by {metric.signed(gain)} {unit}",
        )
        best = ticket - max([mean_worth(each, "dense", 0, metric) for each in searches] + [b for b in budgets if b is not None])
        met["5"] = best >= -margins.about, f"ticket {metric.signed(best)} {unit} against the best of the dense trainings"
    tried = "one learning rate" if not others else f"{len(searches)} learning rates"
    if (control := best_control(searches, level, metric)) is not None:
        gap = ticket - control
        met["2"] = (
            gap > margins.clearly,
            f"the small dense network without the ticket is {metric.signed(gap).removeprefix('+')} {unit} behind",
        )
        met["3"] = gap > 0, f"ticket {metric.signed(gap)} {unit} against random re-initialisation; tried at {tried}"
    to_dense = ticket - dense
    met["4"] = to_dense >= -margins.about, f"ticket {metric.signed(to_dense)} {unit} against the dense network at the same learning rate"
    return Conditions({n: flag for n, (flag, _) in met.items()}, {n: reason for n, (_, reason) in met.items()})


def best_control(searches: Sequence[Sequence[Trained]], level: int, metric: Metric = ACCURACY) -> float | None:
    """The best mean, over searches and kinds of control, of the ticket's size from random weights; None where none was trained."""
    found = [mean_worth(rows, kind, level, metric) for rows in searches for kind in CONTROLS if arm(rows, kind, level)]
    return max(found, default=None)


def arm(rows: Sequence[Trained], kind: str, level: int) -> list[Trained]:
    """The rows of one arm at a level, by seed."""
    return sorted((r for r in rows if r.arm == kind and r.level == level), key=lambda r: r.seed)


def mean_worth(rows: Sequence[Trained], kind: str, level: int, metric: Metric = ACCURACY) -> float:
    """Mean of an arm's metric on validation items at a level, in the metric's units."""
    return float(np.mean([metric.worth(r.val_score) for r in arm(rows, kind, level)]))


def removed(dense: Trained, tickets: Sequence[Trained]) -> tuple[float, str]:
    """The share that is gone, and of what: MACs, or where masks drop single weights, those."""
    if all(row.weights is not None for row in tickets):
        return 1 - float(np.mean([row.params for row in tickets])) / dense.params, "parameters"
    return 1 - float(np.mean([row.macs for row in tickets])) / dense.macs, "MACs"


def _mean_of(rows: Sequence[Trained], kind: str, metric: Metric) -> float | None:
    """The same of an arm that is trained at one level only, whichever; None where it was not."""
    found = [metric.worth(r.val_score) for r in rows if r.arm == kind]
    return float(np.mean(found)) if found else None
