"""The rules of verifying by simulation: a slower file is found out, an honest one passes, and noise confirms nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from ltcompile import timing
from ltcompile.core.interval import binomial_tail
from ltcompile.verification import checks, rules
from ltcompile.verification.result import Value
from ltcompile.verification.rules import judge_accuracy, judge_latency, judge_speedup

Array = NDArray[np.float64]
# Noise of logarithms of times: of a block, of a run, of one session of a runtime, and how often a block is interrupted, by how much.
BLOCK_SD, RUN_SD, SESSION_SD, INTERRUPTED, LONGER, RUNS = 0.02, 0.05, 0.01, 0.05, 0.2, 10
TRIES = 1500
SLOW = 1.1


def sessions(random: np.random.Generator, blocks: int, drift: float) -> tuple[Array, Array]:
    """Milliseconds (TRIES, blocks, RUNS) of a dense network of 3 ms and a small one of 1 ms, on a machine that drifts as a random walk."""
    turns, shape = 2 * blocks, (TRIES, blocks, 2, 1)
    machine = random.normal(0, drift / np.sqrt(turns), (TRIES, turns)).cumsum(1).reshape(shape)
    own = random.normal(0, BLOCK_SD, shape) + (random.random(shape) < INTERRUPTED) * random.exponential(LONGER, shape)
    ms = np.exp(machine + own + random.normal(0, RUN_SD, (*shape[:3], RUNS)))
    ms[:, 1::2] = ms[:, 1::2, ::-1]  # turns back
    ms *= np.exp(random.normal(0, SESSION_SD / np.sqrt(2), (TRIES, 1, 2, 1)))
    return 3 * ms[:, :, 0], ms[:, :, 1]


@pytest.mark.parametrize("drift", [0.0, pytest.param(0.02, marks=pytest.mark.slow), 0.05])
def test_slower_files_are_found_out_and_honest_ones_pass(drift: float) -> None:
    """By both measures, at the default lengths of a benchmark and of a check."""
    random = np.random.default_rng(0)
    claimed_dense, claimed_small = sessions(random, timing.BLOCKS, drift)
    dense, small = sessions(random, checks.BLOCKS, drift)
    claims = [Value(*timing.speedup(d, s)) for d, s in zip(claimed_dense, claimed_small, strict=True)]
    for slower, verdict in ((1.0, "confirmed"), (SLOW, "not confirmed")):
        found = Counter(judge_speedup(c, d, slower * s)[0] for c, d, s in zip(claims, dense, small, strict=True))
        assert (found[verdict] if slower == 1 else TRIES - found["confirmed"]) >= 0.95 * TRIES, (slower, found)
        assert found[verdict] >= 0.9 * TRIES, "and mostly by a verdict"
    if drift <= 0.02:  # of latencies, the machine must be the same, its speed included
        p50 = np.median(claimed_small, axis=(1, 2))
        honest, slow = (Counter(judge_latency(c, by * s)[0] for c, s in zip(p50, small, strict=True)) for by in (1.0, SLOW))
        assert honest["confirmed"] >= 0.95 * TRIES, honest
        assert TRIES - slow["confirmed"] >= 0.95 * TRIES and slow["not confirmed"] >= 0.9 * TRIES, slow


@pytest.mark.parametrize("slower", [1.0, SLOW])
def test_noise_confirms_nothing_and_refutes_nothing(slower: float) -> None:
    """Neither of the check nor of the claim: where they say little, nothing follows."""
    random = np.random.default_rng(1)
    steady, noisy = np.ones((40, 1)), np.exp(random.normal(0, 0.5, (40, 1)))
    for claimed, small in ((Value(3.0, 2.9, 3.1), noisy), (Value(3.0, 1.5, 6.0), steady)):
        verdict, reason, _ = judge_speedup(claimed, 3 * steady, slower * small / np.median(small))
        assert verdict == "not comparable" and "8%" in reason
    assert judge_latency(1.0, slower * noisy / np.median(noisy))[0] == "not comparable"
    drifting = np.geomspace(0.9, 1.1, 40)[:, None]
    verdict, reason, _ = judge_latency(1.0, slower * drifting)
    assert verdict == "not comparable" and "changed by" in reason


def test_a_better_result_passes() -> None:
    steady = np.ones((10, 2))
    assert judge_speedup(Value(3.0, 2.5, 3.5), 9 * steady, steady)[0] == "confirmed"
    assert judge_latency(1.0, 0.5 * steady)[0] == "confirmed"
    assert judge_accuracy(0.8, 990, 1000)[0] == "confirmed"
    assert judge_accuracy(0.8, 100, 100)[0] == "confirmed"
    assert judge_accuracy(0.8, 99, 99)[0] == "not comparable", "too few images, however good"


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("images", [100, 450, 10_000])
def test_accuracies_err_as_seldom_as_they_say(share: float, images: int) -> None:
    """Exactly, over everything that may be found."""
    deviation = np.sqrt(images) / 2
    counts = range(max(0, round(images * (share - 0.02) - 6 * deviation)), min(images, round(images * share + 6 * deviation)) + 1)
    verdicts = np.array([judge_accuracy(share, k, images)[0] for k in counts])
    inferior = stats.binom.pmf(counts, images, share - rules.ACCURACY_MARGIN)
    assert inferior[verdicts == "confirmed"].sum() <= 0.05
    honest = stats.binom.pmf(counts, images, share)
    assert honest[verdicts == "not confirmed"].sum() <= 0.05
    assert images < 10_000 or honest[verdicts == "confirmed"].sum() >= 0.95, "ten thousand images are enough"


def test_what_it_takes_is_reported() -> None:
    verdict, reason, _ = judge_accuracy(0.9, 180, 200)
    assert verdict == "not comparable" and "give 2,500 or more" in reason
    counts = range(2100, 2400)
    honest = stats.binom.pmf(counts, 2500, 0.9)
    passes = np.array([judge_accuracy(0.9, k, 2500)[0] == "confirmed" for k in counts])
    assert honest[passes].sum() >= 0.9


def test_the_binomial_tail_is_scipys() -> None:
    random = np.random.default_rng(0)
    for images, share in zip(random.integers(1, 3000, 30), random.random(30), strict=True):
        least = int(np.clip(random.normal(images * share, np.sqrt(images)), 0, images))
        assert binomial_tail(least, int(images), float(share)) == pytest.approx(
            stats.binom.sf(least - 1, images, share), rel=1e-8, abs=1e-12
        )
    assert [binomial_tail(k, 3, p) for k, p in ((0, 0.0), (1, 0.0), (3, 1.0), (4, 0.5))] == [1.0, 0.0, 1.0, 0.0]
