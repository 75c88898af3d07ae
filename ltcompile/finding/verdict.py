"""Which ticket won, by a rule that is stated with the result; validation data only.

Rule: among the levels whose accuracy is not inferior to the dense network's, the one with the fewest MACs. Not inferior: the
one-sided lower confidence bound of the paired difference lies above -margin. With three seeds or more the samples are seeds
(Student's t); with fewer they are the validation images (normal), which says nothing of the spread between seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ltcompile.core.records import Trained, Verdict

FEWEST_SEEDS = 3
NONTRIVIAL_SHARE = 0.5  # of the MACs: less is not called a sparse ticket


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
    dense = _arm(rows, "dense", 0)
    levels = sorted({r.level for r in rows if r.arm == "ticket"})
    differences = {level: difference(_arm(rows, "ticket", level), dense, confidence) for level in levels}
    winners = [level for level in levels if differences[level]["low"] > -margin_points]
    smallest = min(winners, key=lambda level: np.mean([r.macs for r in _arm(rows, "ticket", level)]), default=None)
    return smallest, differences


def closest_level(differences: dict[int, dict[str, float]]) -> int:
    """Where no ticket won: the level with the highest lower bound."""
    return max(differences, key=lambda level: differences[level]["low"])


def judge(rows: Sequence[Trained], margin_points: float, confidence: float, rewinding: str) -> Verdict:
    """The verdict over all arms, in words and in the five conditions of Ma et al. 2021 (arXiv:2107.00166)."""
    level, differences = choose_level(rows, margin_points, confidence)
    shown = level if level is not None else closest_level(differences)
    flags, reasons = _flags(rows, shown, margin_points)
    seeds = len(_arm(rows, "dense", 0))
    samples = f"{seeds} seeds (Student's t)" if seeds >= FEWEST_SEEDS else f"{differences[shown]['n']:.0f} validation images (normal)"
    rule = (
        f"the fewest MACs among tickets whose {confidence:.0%} lower bound of (ticket - dense) is above -{margin_points:g} points of "
        f"validation accuracy; samples: {samples}"
    )
    summary = _summary(rows, level, shown, differences, margin_points, rewinding, flags)
    if seeds < FEWEST_SEEDS:
        summary.append(f"{seeds} seed{'s' * (seeds > 1)}: the interval covers the images, not the spread between trainings.")
    return Verdict(level, rule, margin_points, confidence, {str(k): v for k, v in differences.items()}, summary, flags, reasons)


def _arm(rows: Sequence[Trained], arm: str, level: int) -> list[Trained]:
    return sorted((r for r in rows if r.arm == arm and r.level == level), key=lambda r: r.seed)


def _mean(rows: Sequence[Trained]) -> float:
    return float(np.mean([100 * r.val_accuracy for r in rows]))


def _summary(
    rows: Sequence[Trained],
    level: int | None,
    shown: int,
    differences: dict[int, dict[str, float]],
    margin: float,
    rewinding: str,
    flags: dict[str, bool | None],
) -> list[str]:
    dense, ticket = _arm(rows, "dense", 0), _arm(rows, "ticket", shown)
    removed = 1 - np.mean([r.macs for r in ticket]) / dense[0].macs
    delta = differences[shown]
    told = f"{removed:.1%} of the MACs removed, {delta['mean']:+.2f} points of validation accuracy (lower bound {delta['low']:+.2f})"
    if level is None:
        lines = [
            f"No ticket won: none is within {margin:g} points of the dense network at this confidence. The closest is level {shown}: {told}."
        ]
    else:
        lines = [f"Level {level} won ({rewinding} rewinding): {told}."]
    random, budget = _arm(rows, "random", shown), _arm(rows, "dense_budget", shown)
    if random:
        gap = _mean(ticket) - _mean(random)
        if flags["2"]:
            lines.append(f"It beats its own architecture from random weights by {gap:.2f} points.")
        else:
            lines.append(
                f"The control did as well: the same architecture from random weights is {abs(gap):.2f} points "
                f"{'behind' if gap >= 0 else 'ahead'}, so the architecture matters here, not the ticket's weights."
            )
    if budget:
        gap = _mean(ticket) - _mean(budget)
        lines.append(
            f"The dense network with the ticket's whole training budget is {abs(gap):.2f} points {'behind' if gap >= 0 else 'ahead'}."
        )
    return lines


def _flags(rows: Sequence[Trained], level: int, margin: float) -> tuple[dict[str, bool | None], dict[str, str]]:
    """Ma et al.'s conditions: "about" is at most the margin, "clearly" is more than it."""
    dense, ticket = _arm(rows, "dense", 0), _arm(rows, "ticket", level)
    random, budget = _arm(rows, "random", level), _arm(rows, "dense_budget", level)
    removed = 1 - float(np.mean([r.macs for r in ticket])) / dense[0].macs
    to_dense = _mean(ticket) - _mean(dense)
    flags: dict[str, bool | None] = {"1": None, "2": None, "3": None, "4": to_dense >= -margin, "5": None}
    reasons = {
        "1": "needs the control arms",
        "2": "needs the control arms",
        "3": "needs the control arms",
        "5": "needs the control arms",
        "4": f"ticket {to_dense:+.2f} points against the dense network at the same learning rate",
    }
    if budget:
        gain = _mean(budget) - _mean(dense)
        flags["1"] = removed >= NONTRIVIAL_SHARE and gain <= margin
        reasons["1"] = f"{removed:.1%} of the MACs removed; training on changes the dense network by {gain:+.2f} points"
        best = _mean(ticket) - max(_mean(dense), _mean(budget))
        flags["5"] = best >= -margin
        reasons["5"] = f"ticket {best:+.2f} points against the best of the dense trainings"
    if random:
        gap = _mean(ticket) - _mean(random)
        flags["2"] = gap > margin
        reasons["2"] = f"the small dense network without the ticket is {gap:.2f} points behind"
        flags["3"] = gap > 0
        reasons["3"] = f"ticket {gap:+.2f} points against random re-initialisation; tried at one learning rate"
    return flags, reasons
