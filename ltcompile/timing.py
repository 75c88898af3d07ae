"""Race calls against each other, and say how sure the ratio of their medians is.

Subjects run in short blocks that alternate, so that a slow minute of the machine falls on all of them. A block starts with
unmeasured runs: worker threads of the subject before keep spinning for work (ONNX Runtime's for 40 ms on two cores, PyTorch's
for 8) and would take this one's cores. A run that takes much longer than that settles within itself.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]
Clock = Callable[[], float]  # seconds
Times = NDArray[np.float64]  # (blocks, runs in a block), milliseconds

BLOCKS = 15
MIN_BLOCKS = 5
MIN_RUNS_PER_BLOCK = 2
SETTLE_S = 0.06
SLOW = 10.0  # times as long as settling
WARMUP_SHARE = 0.1  # of a subject's seconds


def race(
    calls: Mapping[str, Call],
    *,
    seconds: float = 2.0,
    runs: int = 1500,
    warmup: int = 20,
    settle_s: float = SETTLE_S,
    clock: Clock = time.perf_counter,
) -> dict[str, Times]:
    """Time `calls` side by side: name -> milliseconds (blocks, runs in a block); block i of all ran one after another.

    Each takes about `seconds` in all, warm-up (at most `warmup` runs) and settling included, and at most `runs` measured
    runs; slow calls take longer, because nobody gets fewer than 5 blocks of 2 runs. `settle_s` is how long a block runs
    unmeasured first: what runs on a GPU needs none.
    """
    with _no_gc():
        start = clock()
        run_s = {name: _warm_up(call, seconds, warmup, clock) for name, call in calls.items()}
        settles = {name: not 0 < SLOW * settle_s <= taken for name, taken in run_s.items()}
        lengths = {name: _block_length(taken, seconds, runs, settle_s, settles[name]) for name, taken in run_s.items()}
        blocks: dict[str, list[list[float]]] = {name: [] for name in calls}
        for turn in range(BLOCKS):
            if turn >= MIN_BLOCKS and clock() - start >= seconds * len(calls):
                break
            for name in calls if turn % 2 == 0 else reversed(list(calls)):
                blocks[name].append(_block(calls[name], lengths[name], settle_s, settles[name], clock))
    return {name: np.array(block_list) for name, block_list in blocks.items()}


@contextlib.contextmanager
def _no_gc() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _warm_up(call: Call, seconds: float, warmup: int, clock: Clock) -> float:
    """Run at least twice; the seconds that one run takes, the first left out."""
    start = clock()
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < warmup and clock() - start < WARMUP_SHARE * seconds):
        taken.append(_seconds(call, clock))
    return statistics.median(taken[1:])


def _block_length(run_s: float, seconds: float, runs: int, settle_s: float, settles: bool) -> int:
    """The runs that fit into one of BLOCKS blocks beside its settling."""
    measured_s = seconds * (1 - WARMUP_SHARE) / BLOCKS - max(settle_s, run_s) * settles
    fitting = int(min(runs / BLOCKS, measured_s / max(run_s, 1e-9)))
    return max(MIN_RUNS_PER_BLOCK if settles else 1, fitting)


def _block(call: Call, length: int, settle_s: float, settles: bool, clock: Clock) -> list[float]:
    start = clock()
    if settles:
        call()
        while clock() - start < settle_s:
            call()
    return [1000 * _seconds(call, clock) for _ in range(length)]


def _seconds(call: Call, clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start


def speedup(
    dense_ms: Times, small_ms: Times, confidence: float = 0.95, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Median of `dense_ms` over median of `small_ms`, with the low and high end of its percentile bootstrap interval.

    Both are (blocks, runs) from one race. Whole blocks are drawn, the same ones for both: runs inside a block are not
    independent, and block i of both saw the same machine. (Efron & Tibshirani 1993, chapters 8 and 13.)
    """
    blocks = len(dense_ms)
    if len(small_ms) != blocks:
        raise ValueError(f"{blocks} blocks of the one, {len(small_ms)} of the other; both must come from one race")
    drawn = np.random.default_rng(seed).integers(blocks, size=(resamples, blocks))
    ratios = np.array([np.median(dense_ms[i]) / np.median(small_ms[i]) for i in drawn])
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.median(dense_ms) / np.median(small_ms)), float(low), float(high)
