"""Which ticket won, by a rule that is stated with the result; validation data only.

Rule: among the levels whose accuracy is not inferior to the dense network's, the one with the fewest MACs; where masks drop single
weights, with the fewest parameters. Not inferior: the one-sided lower confidence bound of the paired difference lies above -margin.
With three seeds or more the samples are seeds (Student's t); with fewer they are the validation images (normal), which says nothing of
the spread between seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ltcompile.core.records import Trained, Verdict
from ltcompile.finding.conditions import Margins, arm, best_control, conditions, points, removed

FEWEST_SEEDS = 3


def difference(tickets: Sequence[Trained], dense: Sequence[Trained], confidence: float) -> dict[str, float]:
    """Mean of ticket - dense in points of validation accuracy, its one-sided lower bound, and the number of samples.

    Both have one row a seed, in the same order.
    """
    from scipy import stats

    if len(tickets) >= FEWEST_SEEDS:
        samples = np.array([100 * (t.val_accuracy - d.val_accuracy) for t, d in zip(tickets, dense, strict=True)])
        quantile = float(stats.t.ppf(confidence, len(samples) - 1))
    else:
        samples = 100 * np.mean([_right(t) - _right(d) for t, d in zip(tickets, dense, strict=True)], axis=0)
        quantile = float(stats.norm.ppf(confidence))
    mean, error = float(samples.mean()), float(samples.std(ddof=1)) / math.sqrt(len(samples))
    return {"mean": mean, "low": mean - quantile * error, "n": len(samples)}


def _right(row: Trained) -> np.ndarray:
    """Which validation images were right, as 0 and 1."""
    digits = row.val_correct
    return np.array([int(b) for b in f"{int(digits, 16):0{4 * len(digits)}b}"], dtype=float)


def choose_level(rows: Sequence[Trained], margin_points: float, confidence: float) -> tuple[int | None, dict[int, dict[str, float]]]:
    """The winning level, if any, and every level's difference to the dense network."""
    dense = arm(rows, "dense", 0)
    levels = sorted({r.level for r in rows if r.arm == "ticket"})
    differences = {level: difference(arm(rows, "ticket", level), dense, confidence) for level in levels}
    winners = [level for level in levels if differences[level]["low"] > -margin_points]
    smallest = max(winners, key=lambda level: removed(dense[0], arm(rows, "ticket", level))[0], default=None)
    return smallest, differences


def closest_level(differences: dict[int, dict[str, float]]) -> int:
    """Where no ticket won: the level with the highest lower bound."""
    return max(differences, key=lambda level: differences[level]["low"])


def judge(rows: Sequence[Trained], margin_points: float, confidence: float, rewinding: str) -> Verdict:
    """The verdict over all arms, in words and in the five conditions of Ma et al. 2021 (arXiv:2107.00166)."""
    level, differences = choose_level(rows, margin_points, confidence)
    shown = level if level is not None else closest_level(differences)
    met = conditions(rows, shown, Margins(margin_points, margin_points))
    seeds = len(arm(rows, "dense", 0))
    samples = f"{seeds} seeds (Student's t)" if seeds >= FEWEST_SEEDS else f"{differences[shown]['n']:.0f} validation images (normal)"
    rule = (
        f"the fewest {removed(*_pair(rows, shown))[1]} among tickets whose {confidence:.0%} lower bound of (ticket - dense) is above "
        f"-{margin_points:g} points of validation accuracy; samples: {samples}"
    )
    summary = _summary(rows, level, shown, differences, margin_points, rewinding, met.flags)
    if seeds < FEWEST_SEEDS:
        summary.append(f"{seeds} seed{'s' * (seeds > 1)}: the interval covers the images, not the spread between trainings.")
    return Verdict(level, rule, margin_points, confidence, {str(k): v for k, v in differences.items()}, summary, met.flags, met.reasons)


def _pair(rows: Sequence[Trained], level: int) -> tuple[Trained, list[Trained]]:
    """A dense network, and the tickets of a level."""
    return arm(rows, "dense", 0)[0], arm(rows, "ticket", level)


def _summary(
    rows: Sequence[Trained],
    level: int | None,
    shown: int,
    differences: dict[int, dict[str, float]],
    margin: float,
    rewinding: str,
    flags: dict[str, bool | None],
) -> list[str]:
    share, of = removed(*_pair(rows, shown))
    delta = differences[shown]
    told = f"{share:.1%} of the {of} removed, {delta['mean']:+.2f} points of validation accuracy (lower bound {delta['low']:+.2f})"
    if level is None:
        lines = [
            f"No ticket won: none is within {margin:g} points of the dense network at this confidence. The closest is level {shown}: {told}."
        ]
    else:
        lines = [f"Level {level} won ({rewinding} rewinding): {told}."]
    if (control := best_control([rows], shown)) is not None:
        gap = points(rows, "ticket", shown) - control
        if flags["2"]:
            lines.append(f"It beats its own architecture from random weights by {gap:.2f} points.")
        else:
            lines.append(
                f"The control did as well: the same architecture from random weights is {abs(gap):.2f} points "
                f"{'behind' if gap >= 0 else 'ahead'}, so the architecture matters here, not the ticket's weights."
            )
    if arm(rows, "dense_budget", shown):
        gap = points(rows, "ticket", shown) - points(rows, "dense_budget", shown)
        lines.append(
            f"The dense network with the ticket's whole training budget is {abs(gap):.2f} points {'behind' if gap >= 0 else 'ahead'}."
        )
    return lines
