"""Which ticket won, by a rule that is stated with the result; validation data only.

With three seeds or more, fixed-sequence testing over levels: from the largest network down, a level passes if its accuracy is shown not
inferior to the dense network's: the one-sided lower confidence bound of the difference, paired by seed (Student's t), lies above -margin.
The first level that fails ends the test, and the last that passed wins. So an inferior level wins with a chance of at most
1 - confidence, however many levels there are (`inference`).

With one or two seeds nothing is decided between trainings. A level is then picked in the same order by the bound over validation images,
which describes the networks that were trained, and claims nothing of others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ltcompile.core.records import Trained, Verdict
from ltcompile.core.task import ACCURACY, Metric
from ltcompile.search.conditions import CONTROLS, Margins, arm, conditions_met, removed
from ltcompile.search.inference import FEWEST_SEEDS, image_lower_bounds, interval, levels_passed, lower_bounds

Gap = dict[str, float | None]
NAMES = {
    "random": "the same architecture from random weights, with the ticket's whole training budget",
    "reinit": "the same architecture from random weights",
    "shuffled": "the same number of weights in other places",
    "dense_budget": "the dense network with the ticket's whole training budget",
}


def difference(tickets: Sequence[Trained], dense: Sequence[Trained], confidence: float, metric: Metric = ACCURACY) -> dict[str, float]:
    """Mean of ticket - dense on validation items in the metric's units (above 0: the ticket is better), its one-sided lower bound, and the
    number of samples. With few seeds it describes the networks at hand, by their items; where the metric is not a mean of items, there is no
    bound, and it is the mean.

    Both have one row a seed, in the same order.
    """
    gaps = _paired(tickets, dense, metric)
    if len(gaps) >= FEWEST_SEEDS:
        return {"mean": float(gaps.mean()), "low": float(lower_bounds(gaps, confidence, _images(dense[0]))), "n": len(gaps)}
    pairs = list(zip(tickets, dense, strict=True))
    if not _has_items(dense[0]):
        return {"mean": float(gaps.mean()), "low": float(gaps.mean()), "n": len(gaps)}
    if dense[0].val_correct:
        changes = np.mean([_correct(t) - _correct(d) for t, d in pairs], axis=0)
        return {"mean": float(gaps.mean()), "low": float(image_lower_bounds(changes, confidence)), "n": len(changes)}
    gains = np.mean([[metric.gain(ours, theirs) for ours, theirs in zip(t.val_items, d.val_items, strict=True)] for t, d in pairs], axis=0)
    return {"mean": float(gaps.mean()), "low": float(lower_bounds(gains, confidence, math.inf)), "n": len(gains)}


def gap(tickets: Sequence[Trained], control: Sequence[Trained], confidence: float, metric: Metric = ACCURACY) -> Gap:
    """Mean of ticket - control on validation items in the metric's units, and with enough seeds the two-sided interval (None otherwise)."""
    seeds = sorted({t.seed for t in tickets} & {c.seed for c in control})
    gaps = _paired([t for t in tickets if t.seed in seeds], [c for c in control if c.seed in seeds], metric)
    found: Gap = {"mean": float(gaps.mean()), "low": None, "high": None, "seeds": len(gaps)}
    if len(gaps) >= FEWEST_SEEDS:
        low, high = interval(gaps, confidence, _images(control[0]))
        found |= {"low": float(low), "high": float(high)}
    return found


def choose_level(
    rows: Sequence[Trained], margin_points: float, confidence: float, metric: Metric = ACCURACY
) -> tuple[int | None, dict[int, dict[str, float]]]:
    """The level that the rule names, if any, and every level's difference to the dense network."""
    dense = arm(rows, "dense", 0)
    levels = sorted({r.level for r in rows if r.arm == "ticket"})
    differences = {level: difference(arm(rows, "ticket", level), dense, confidence, metric) for level in levels}
    passed = int(levels_passed(np.array([differences[level]["low"] for level in levels]), margin_points))
    return (levels[passed - 1] if passed else None), differences


def closest_level(differences: dict[int, dict[str, float]]) -> int:
    """Where the rule names no level: the one with the highest lower bound."""
    return max(differences, key=lambda level: differences[level]["low"])


def typical_seed(tickets: Sequence[Trained], metric: Metric = ACCURACY) -> int:
    """The seed whose metric on validation items is the median, the lower one of an even number: the saved weights are not the luckiest training's."""
    ranked = sorted(tickets, key=lambda row: (metric.worth(row.val_score), row.seed))
    return ranked[(len(ranked) - 1) // 2].seed


def judge(rows: Sequence[Trained], margin_points: float, confidence: float, rewinding: str, metric: Metric = ACCURACY) -> Verdict:
    """The verdict over all arms, in words and in the five conditions of Ma et al. 2021 (arXiv:2107.00166)."""
    level, differences = choose_level(rows, margin_points, confidence, metric)
    shown = level if level is not None else closest_level(differences)
    tickets, met = arm(rows, "ticket", shown), conditions_met(rows, shown, Margins(margin_points, margin_points), metric=metric)
    gaps = {kind: gap(tickets, control, confidence, metric) for kind in NAMES if (control := arm(rows, kind, shown))}
    decided, seed = len(tickets) >= FEWEST_SEEDS, typical_seed(tickets, metric)
    which = (
        "the only seed"
        if len(tickets) == 1
        else f"of median validation {metric.name} among the {len(tickets)} seeds, not of the {metric.best}"
    )
    found = Verdict(
        level=level,
        rule=_rule(tickets, int(differences[shown]["n"]), margin_points, confidence, metric),
        margin_points=margin_points,
        confidence=confidence,
        differences={str(k): v for k, v in differences.items()},
        summary=[],
        flags=met.flags,
        flag_reasons=met.reasons,
        decided=decided,
        gaps=gaps,
        seed_rule=f"the saved weights are those of seed {seed}: {which}",
    )
    found.summary.extend(_summary(found, rows, shown, rewinding, metric))
    return found


def _has_items(row: Trained) -> bool:
    """Whether items can be paired, of which a spread takes two."""
    return bool(row.val_correct) or len(row.val_items) > 1


def _paired(ours: Sequence[Trained], theirs: Sequence[Trained], metric: Metric) -> np.ndarray:
    """By how many units `ours` are better (seeds,)."""
    return np.array([metric.gain(a.val_score, b.val_score) for a, b in zip(ours, theirs, strict=True)])


def _correct(row: Trained) -> np.ndarray:
    """Which validation images were right (images,), as 0 and 1."""
    bits = f"{int(row.val_correct, 16):0{4 * len(row.val_correct)}b}"
    return np.array([int(b) for b in bits[len(bits) - int(_images(row)) :]], dtype=float)


def _images(row: Trained) -> float:
    """How many validation images a row counts: up to three bits of the first hexadecimal digit are padding."""
    if not row.val_correct:
        return math.inf  # no share of items: values come in no steps
    most = 4 * len(row.val_correct)
    correct = int(row.val_correct, 16).bit_count()
    return min(most, max(most - 3, round(correct / row.val_score))) if correct and row.val_score else most


def _rule(tickets: Sequence[Trained], samples: int, margin: float, confidence: float, metric: Metric) -> str:
    seeds, of = len(tickets), f"{metric.unit} of validation {metric.name}"
    if seeds >= FEWEST_SEEDS:
        return (
            f"fixed-sequence test: from the largest network down, a level passes if the {confidence:.0%} lower bound of (ticket - dense), "
            f"paired over {seeds} seeds (Student's t), is above -{margin:g} {of}; the first failure ends the test, "
            "and the last level that passed wins"
        )
    if not _has_items(tickets[0]):
        return (
            f"not decided between trainings, which takes {FEWEST_SEEDS} seeds; picked: from the largest network down, the last level before the "
            f"first at which the mean of (ticket - dense) is not above -{margin:g} {of}; this claims no confidence"
        )
    return (
        f"not decided between trainings, which takes {FEWEST_SEEDS} seeds; picked: from the largest network down, the last level before the "
        f"first whose {confidence:.0%} lower bound of (ticket - dense) over {samples} validation images is not above -{margin:g} {metric.unit} "
        f"of {metric.name}; this describes the trained networks, and claims no confidence for others"
    )


def _summary(verdict: Verdict, rows: Sequence[Trained], shown: int, rewinding: str, metric: Metric) -> list[str]:
    gone, of = removed(arm(rows, "dense", 0)[0], arm(rows, "ticket", shown))
    delta, seeds = verdict.differences[str(shown)], len(arm(rows, "ticket", shown))
    over = "" if verdict.decided else " over validation images"
    bound = f" (lower bound{over} {metric.signed(delta['low'])})" if verdict.decided or _has_items(rows[0]) else ""
    mean = f" (mean of {seeds} seeds)" if seeds > 1 else ""
    sign = "" if metric.higher_is_better else ", where + is better"
    figures = f"{gone:.1%} of the {of} removed{mean}, {metric.signed(delta['mean'])} {metric.unit} of validation {metric.name}{sign}{bound}"
    margin = f"within {verdict.margin_points:g} {metric.unit} of the dense network"
    lines = []
    if not verdict.decided:
        lines.append(f"Not decided between trainings: {seeds} seed{'s' * (seeds > 1)}, and a verdict takes {FEWEST_SEEDS}.")
    if verdict.level is None:
        failed = "none is shown" if verdict.decided else "by its rule none is"
        lines.append(f"No ticket {'won' if verdict.decided else 'is picked'}: {failed} {margin}. The closest is level {shown}: {figures}.")
    else:
        lines.append(f"Level {shown} {'won' if verdict.decided else 'is picked by the rule'} ({rewinding} rewinding): {figures}.")
    lines += _controls(verdict.gaps, verdict.confidence, metric)
    return [*lines, f"{verdict.seed_rule[0].upper()}{verdict.seed_rule[1:]}."]


def _controls(gaps: dict[str, Gap], confidence: float, metric: Metric) -> list[str]:
    """A line each for the best control of the ticket's size, and for the dense network with the ticket's budget."""
    lines = []
    sized = min((kind for kind in CONTROLS if kind in gaps), key=lambda kind: gaps[kind]["mean"] or 0.0, default=None)
    if sized is not None:
        words, low, high = _in_words(gaps[sized], confidence, metric), gaps[sized]["low"], gaps[sized]["high"]
        if low is None or high is None:
            lines.append(f"Against {NAMES[sized]}: {words}.")
        elif low > 0:
            lines.append(f"It beats {NAMES[sized]}: {words}.")
        elif high < 0:
            lines.append(f"It is worse than {NAMES[sized]}: {words}. The ticket's weights were not needed.")
        else:
            lines.append(f"It is not shown to beat {NAMES[sized]}: {words}. Nothing shows that the ticket's weights matter.")
    if "dense_budget" in gaps:
        lines.append(f"Against {NAMES['dense_budget']}: {_in_words(gaps['dense_budget'], confidence, metric)}.")
    return lines


def _in_words(found: Gap, confidence: float, metric: Metric) -> str:
    assert found["mean"] is not None
    words = f"{metric.signed(found['mean'])} {metric.unit}"
    if found["low"] is None or found["high"] is None:
        return f"{words}, not decided between trainings"
    return f"{words} ({confidence:.0%} interval {metric.signed(found['low'])} to {metric.signed(found['high'])})"
