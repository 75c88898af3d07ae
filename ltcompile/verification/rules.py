"""When a measurement repeats a claim: one-sided tests of non-inferiority at 95 %, so that a better result always passes.

A claim is confirmed where the measurement is shown to be less than the margin worse than it. It is not confirmed where that is not shown
and the measurement is worse than the claim, 95 % surely. All else is not comparable: too few images, or times that vary too much. Noise thus
confirms nothing. A network that is 10 % slower than claimed should fail, and one as fast as claimed should pass, each in at
least 95 % of runs: both need a margin well between 0 and 10 %.
"""

from __future__ import annotations

import math

import numpy as np

from ltcompile.core.interval import binomial_tail
from ltcompile.timing import Times, level, speedup
from ltcompile.verification.result import Value, Verdict, share_of

SPEEDUP_MARGIN = 0.08  # of a claimed speedup: a margin that the usual precision of a benchmark and a check resolves
LATENCY_MARGIN = 0.06  # of a claimed latency, which has no interval of its own
DRIFT = 0.05  # by which medians of thirds of a run may differ; larger drift widens the interval of a latency by as much
ACCURACY_MARGIN = 0.02  # 2 points of accuracy
ERROR = 0.05  # of a one-sided test
MIN_IMAGES = 100
ONE_SIDED = 1.644854 / 1.959964  # half a two-sided 95 % interval, as part of it, to the bound of a one-sided test

Judged = tuple[Verdict, str, Value]  # with the reason, and what was found


def judge_speedup(claimed: Value, dense_ms: Times, small_ms: Times) -> Judged:
    """Judges a speedup and its 95 % interval by times (blocks, runs) from one interleaved run. The claim's own interval counts too."""
    assert claimed.low is not None and claimed.high is not None
    ratio, low, high = speedup(dense_ms, small_ms)
    _, least, most = speedup(dense_ms, small_ms, 1 - 2 * ERROR)
    gap = math.log(ratio / claimed.value)
    worst = gap - math.hypot(math.log(ratio / least), ONE_SIDED * max(0.0, math.log(claimed.high / claimed.value)))
    best = gap + math.hypot(math.log(most / ratio), ONE_SIDED * max(0.0, math.log(claimed.value / claimed.low)))
    return (*_judge_speed(worst, best, SPEEDUP_MARGIN), Value(ratio, low, high))


def judge_latency(claimed_ms: float, small_ms: Times) -> Judged:
    """Judges a median latency by times (blocks, runs) on the same machine; found are the blocks' medians with their 95 % interval.

    A change of the machine's speed since the benchmark counts against the network; `judge_speedup` has no such error.
    """
    found = Value(*level(small_ms))
    _, least, most = level(small_ms, 1 - 2 * ERROR)
    thirds = [float(np.median(part)) for part in np.array_split(np.median(small_ms, axis=1), 3)]
    drift = max(thirds) / min(thirds)
    wider = math.log(drift) if drift > 1 + DRIFT else 0.0
    verdict, reason = _judge_speed(math.log(claimed_ms / most) - wider, math.log(claimed_ms / least) + wider, LATENCY_MARGIN)
    if verdict == "not comparable" and wider:
        reason += f": its speed changed by {drift - 1:.0%} meanwhile"
    return verdict, reason, found


def _judge_speed(worst: float, best: float, margin: float) -> tuple[Verdict, str]:
    """The verdict from one-sided bounds of log(measured speed / claimed speed)."""
    if worst >= math.log(1 - margin):
        return "confirmed", f"less than {margin:.0%} slower than claimed, if at all"
    if best < 0:
        return "not confirmed", f"slower than claimed, and not shown to be so by less than {margin:.0%}"
    return "not comparable", (
        f"undecided: between {_percent(worst)} and {_percent(best)} than claimed, and the margin is {margin:.0%}; "
        "measure longer with --seconds, or on a machine with less other work"
    )


def _percent(log_ratio: float) -> str:
    change = 100 * math.expm1(log_ratio)
    return f"{abs(change):.0f} % {'slower' if change < 0 else 'faster'}"


def judge_accuracy(claimed: float, correct: int, images: int) -> Judged:
    """Judges an accuracy by the exact binomial test."""
    found = share_of(correct / images, images)
    if images < MIN_IMAGES:
        return "not comparable", f"{images} images are too few; use at least {MIN_IMAGES}", found
    wrong, points = images - correct, f"{100 * ACCURACY_MARGIN:.0f} points"
    if binomial_tail(correct, images, max(0.0, claimed - ACCURACY_MARGIN)) <= ERROR:
        return "confirmed", f"on {images:,} images, less than {points} below the claim, if at all", found
    if binomial_tail(wrong, images, 1 - claimed) <= ERROR:
        return "not confirmed", f"on {images:,} images, below the claim, and not shown to be so by less than {points}", found
    return "not comparable", f"undecided: {images:,} images cannot resolve {points}; give {_enough(claimed):,} or more", found


def _enough(share: float) -> int:
    """About how many images show a network of this accuracy to be no more than the margin below it, 19 times in 20."""
    spread = math.sqrt(max(share * (1 - share), ACCURACY_MARGIN))
    return max(MIN_IMAGES, 100 * math.ceil((2 * 1.644854 * spread / ACCURACY_MARGIN) ** 2 / 100))
