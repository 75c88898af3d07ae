"""Time calls in turns, and say how sure the ratio of their times is.

Subjects run in short blocks that alternate, so that a slow minute of the machine falls on all of them. A block starts with
unmeasured runs: worker threads of the subject before keep spinning for work (ONNX Runtime's for 40 ms on two cores, PyTorch's
for 8) and would take this one's cores. A run that takes much longer than that settles within itself.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]
Clock = Callable[[], float]  # seconds
Times = NDArray[np.float64]  # (blocks, runs in a block), milliseconds

BLOCKS = 15
MIN_BLOCKS = 10  # fewer say too little of how much blocks differ
SCREEN_BLOCKS = 3  # where medians alone matter
MIN_RUNS_PER_BLOCK = 2
SETTLE_S = 0.06
SLOW = 10.0  # times as long as settling
WARMUP_SHARE = 0.1  # of a subject's seconds
SCREEN_S, FINAL_S = 0.4, 1.5  # seconds that `fastest` spends on a candidate, and on one close to the fastest
CLOSE = 1.3  # times as slow as the fastest at first sight


@runtime_checkable
class RemoteCall(Protocol):
    """A call in another process, which times whole blocks there, by these functions, so that what passes between the processes is not timed."""

    def __call__(self) -> object: ...
    def warm_up(self, seconds: float, warmup: int) -> float: ...
    def block(self, length: int, settle_s: float, settles: bool) -> list[float]: ...


def interleave(
    calls: Mapping[str, Call],
    *,
    seconds: float = 2.0,
    runs: int = 1500,
    warmup: int = 20,
    settle_s: float | None = None,
    clock: Clock = time.perf_counter,
    blocks: int = BLOCKS,
    min_blocks: int = MIN_BLOCKS,
) -> dict[str, Times]:
    """Time `calls` side by side: name -> milliseconds (blocks, runs in a block); block i of all ran one after another.

    Each takes about `seconds` in all, warm-up (at most `warmup` runs) and settling included, `blocks` turns, and at most `runs` measured
    runs; slow calls take longer, because each gets at least `min_blocks` of 2 runs (of 1 where a run settles within itself).
    `settle_s` is how long a block runs unmeasured first, SETTLE_S if it is None: what runs on a GPU needs none.
    """
    settle_s = SETTLE_S if settle_s is None else settle_s
    with _no_gc():
        start = clock()
        run_s = {name: warm_up(call, seconds, warmup, clock) for name, call in calls.items()}
        settles = {name: not 0 < SLOW * settle_s <= taken for name, taken in run_s.items()}
        lengths = {name: _block_length(taken, seconds, runs, settle_s, settles[name], blocks) for name, taken in run_s.items()}
        measured: dict[str, list[list[float]]] = {name: [] for name in calls}
        for turn in range(blocks):
            if turn >= min_blocks and clock() - start >= seconds * len(calls):
                break
            for name in calls if turn % 2 == 0 else reversed(list(calls)):
                measured[name].append(block(calls[name], lengths[name], settle_s, settles[name], clock))
    return {name: np.array(block_list) for name, block_list in measured.items()}


@contextlib.contextmanager
def _no_gc() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect(1)  # what is young: next to PyTorch, a full collection takes as long as some timings
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def warm_up(call: Call, seconds: float, warmup: int, clock: Clock = time.perf_counter) -> float:
    """Run at least twice; the seconds that one run takes, the first left out."""
    if isinstance(call, RemoteCall):
        return call.warm_up(seconds, warmup)
    start = clock()
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < warmup and clock() - start < WARMUP_SHARE * seconds):
        taken.append(_seconds(call, clock))
    return statistics.median(taken[1:])


def _block_length(run_s: float, seconds: float, runs: int, settle_s: float, settles: bool, blocks: int) -> int:
    """The runs that fit into one of `blocks` blocks besides its settling."""
    measured_s = seconds * (1 - WARMUP_SHARE) / blocks - max(settle_s, run_s) * settles
    fitting = int(min(runs / blocks, measured_s / max(run_s, 1e-9)))
    return max(MIN_RUNS_PER_BLOCK if settles else 1, fitting)


def block(call: Call, length: int, settle_s: float, settles: bool, clock: Clock = time.perf_counter) -> list[float]:
    """The milliseconds of `length` runs, behind unmeasured ones that take `settle_s` where the call `settles`."""
    if isinstance(call, RemoteCall):
        return call.block(length, settle_s, settles)
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


def speedup(dense_ms: Times, small_ms: Times, confidence: float = 0.95) -> tuple[float, float, float]:
    """How many times as long `dense_ms` takes as `small_ms`, with the low and high end of the interval.

    Both are (blocks, runs) from one interleaved run, so that block i of both saw the same machine: what counts are the logarithms of the ratios of
    their medians, one a block. Turns alternate between forth and back; each pair of a turn forth and a turn back has a mean, in which a
    steady drift and the order of the subjects cancel. The ratio is the median of these means, and the interval lies between two of them,
    by the null distribution of Mann and Whitney's U: the estimate of Hodges and Lehmann (1963). It needs no normal distribution, and one
    interrupted block does not widen it; the coverage is the attainable one closest to `confidence` (94 to 96 % for 95 %).

    Raises:
        ValueError: not from one interleaved run, or fewer than 10 blocks.
    """
    blocks = len(dense_ms)
    if len(small_ms) != blocks or blocks < MIN_BLOCKS:
        raise ValueError(
            f"{blocks} blocks of the one, {len(small_ms)} of the other; both must come from one interleaved run of at least {MIN_BLOCKS}"
        )
    ratios = np.log(np.median(dense_ms, axis=1) / np.median(small_ms, axis=1))  # (blocks,)
    forth, back = ratios[::2], ratios[1::2]
    means = np.sort(np.add.outer(forth, back).ravel() / 2)
    outside = _outside(len(forth), len(back), confidence)
    return tuple(float(np.exp(x)) for x in (np.median(means), means[outside], means[-1 - outside]))  # type: ignore[return-value]


def level(ms: Times, confidence: float = 0.95) -> tuple[float, float, float]:
    """How many milliseconds a run takes, by the medians of blocks (blocks, runs), with the ends of an interval made as `speedup` makes its.

    Raises:
        ValueError: fewer than 10 blocks.
    """
    return speedup(ms, np.ones((len(ms), 1)), confidence)


@functools.cache
def _outside(m: int, n: int, confidence: float) -> int:
    """How many of m * n means lie outside the interval at each end."""
    counts = _arrangements(m, n)
    coverage = 1 - 2 * np.cumsum(counts / counts.sum())[: m * n // 2]
    return int(np.abs(coverage - confidence).argmin())


@functools.cache
def _arrangements(m: int, n: int) -> NDArray[np.float64]:
    """In how many of the arrangements of m and n values U is 0, 1, ..., m * n (Mann & Whitney 1947)."""
    if 0 in (m, n):
        return np.ones(1)
    counts = np.zeros(m * n + 1)
    counts[n:] += _arrangements(m - 1, n)
    counts[: m * n - m + 1] += _arrangements(m, n - 1)
    return counts


@dataclass(frozen=True)
class Fastest:
    """The fastest of several calls, with times from a run of their own.

    A winner's times in the run that picked it are too good: it was picked for its luck too. `times` are from a second run, of the
    winner and the runner-up alone, and `lead` is how many times as long the runner-up takes there, with the ends of the 95 % interval
    (both None where there was one call). `screened_ms` are all medians of the first run.
    """

    name: str
    runner_up: str | None
    times: dict[str, Times]
    lead: tuple[float, float, float] | None
    screened_ms: dict[str, float]

    @property
    def tie(self) -> bool:
        """Whether the second run cannot say which of the two is faster."""
        return self.lead is not None and is_tie(self.lead)

    @property
    def ms(self) -> float:
        """The winner's median milliseconds."""
        return float(np.median(self.times[self.name]))


def is_tie(ratio: tuple[float, float, float]) -> bool:
    """Whether 1 lies within a ratio's interval (ratio, low, high)."""
    return ratio[1] <= 1 <= ratio[2]


def fastest(
    calls: Mapping[str, Call],
    *,
    screen_s: float = SCREEN_S,
    seconds: float = FINAL_S,
    settle_s: float | None = None,
    clock: Clock = time.perf_counter,
) -> Fastest:
    """Pick the fastest of `calls`, then time it again interleaved with the runner-up, in a fresh run of `seconds` each.

    All are timed for `screen_s` each; those at most 1.3 times as slow as the fastest for `seconds` more, and the medians pick. Where the
    fresh run says with its whole interval that the runner-up is faster, that is the winner.

    Raises:
        ValueError: there are no calls.
    """
    if not calls:
        raise ValueError("no calls to pick the fastest of")
    ms = dict.fromkeys(calls, 0.0)
    if len(calls) > 1:
        ms = _medians(interleave(calls, seconds=screen_s, settle_s=settle_s, clock=clock, min_blocks=SCREEN_BLOCKS))
    close = {name: calls[name] for name in ms if ms[name] <= CLOSE * min(ms.values())}
    if len(close) > 1:
        ms |= _medians(interleave(close, seconds=seconds, settle_s=settle_s, clock=clock, min_blocks=SCREEN_BLOCKS))
    first, *others = sorted(ms, key=lambda name: (name not in close, ms[name]))[:2]
    times = interleave({name: calls[name] for name in (first, *others)}, seconds=seconds, settle_s=settle_s, clock=clock)
    if not others:
        return Fastest(first, None, times, None, _medians(times))
    ratio, low, high = speedup(times[others[0]], times[first])
    if high < 1:
        return Fastest(others[0], first, times, (1 / ratio, 1 / high, 1 / low), ms)
    return Fastest(first, others[0], times, (ratio, low, high), ms)


def _medians(times: Mapping[str, Times]) -> dict[str, float]:
    return {name: float(np.median(ms)) for name, ms in times.items()}
