"""The laws of intervals: they hold what they promise while the machine drifts and is interrupted, and a winner is timed twice."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from ltcompile import timing
from ltcompile.timing import Fastest, fastest, interleave, speedup

Array = NDArray[np.float64]
RUNS, BLOCK_SD, RUN_SD = 10, 0.02, 0.05  # of a block; of the logarithms of times
REPETITIONS = 2000


def simulated(random: np.random.Generator, repetitions: int, blocks: int, drift: float, shape: str, noise: str) -> tuple[Array, Array]:
    """Milliseconds (repetitions, blocks, RUNS) of two subjects that are as fast as each other, and take turns forth and back.

    The machine drifts by `drift` over a run: as a trend, as a random walk, or from level to level, one a turn. Blocks have noise of
    their own: normal, heavy-tailed (Student's t with 3 degrees of freedom), or normal with one in ten prolonged by 20 % on average.
    """
    turns = 2 * blocks
    machine = {
        "trend": lambda: np.broadcast_to(drift * np.arange(turns) / turns, (repetitions, turns)),
        "walk": lambda: random.normal(0, drift / np.sqrt(turns), (repetitions, turns)).cumsum(1),
        "levels": lambda: np.repeat(random.normal(0, drift, (repetitions, blocks)), 2, 1),
    }[shape]()
    machine = machine.reshape(repetitions, blocks, 2, 1)
    own = {
        "normal": lambda: random.normal(0, BLOCK_SD, (repetitions, blocks, 2, 1)),
        "heavy": lambda: BLOCK_SD / np.sqrt(3) * random.standard_t(3, (repetitions, blocks, 2, 1)),
        "interrupted": lambda: (
            random.normal(0, BLOCK_SD, (repetitions, blocks, 2, 1))
            + (random.random((repetitions, blocks, 2, 1)) < 0.1) * random.exponential(0.2, (repetitions, blocks, 2, 1))
        ),
    }[noise]()
    ms = np.exp(machine + own + random.normal(0, RUN_SD, (repetitions, blocks, 2, RUNS)))
    ms[:, 1::2] = ms[:, 1::2, ::-1]  # turns back
    return ms[:, :, 0], ms[:, :, 1]


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["normal", "heavy", "interrupted"])
@pytest.mark.parametrize("blocks", [10, 15])
def test_intervals_cover_the_true_ratio_as_often_as_they_say(blocks: int, noise: str) -> None:
    random = np.random.default_rng(blocks)
    for drift, shape in ((0.0, "levels"), (0.02, "trend"), (0.02, "walk"), (0.2, "trend"), (0.2, "walk"), (0.2, "levels")):
        dense, small = simulated(random, REPETITIONS, blocks, drift, shape, noise)
        ends = np.array([speedup(3 * d, s) for d, s in zip(dense, small, strict=True)])
        covered = np.mean((ends[:, 1] <= 3) & (ends[:, 2] >= 3))
        assert 0.93 <= covered <= 0.97, (drift, shape)
        assert abs(np.log(ends[:, 0] / 3).mean()) < 0.003, "a drift falls on both alike"


@pytest.mark.parametrize("blocks", range(10, 16))
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_coverage_is_exact(blocks: int, confidence: float) -> None:
    """The interval leaves out what a Mann-Whitney test at its level, scipy's, rejects."""
    random = np.random.default_rng(blocks)
    ratios = random.normal(0, 1, blocks)
    _, low, high = speedup(np.exp(ratios)[:, None], np.ones((blocks, 1)), confidence)
    forth, back = ratios[::2], ratios[1::2]

    def level(of: float) -> float:
        return float(stats.mannwhitneyu(forth - of, of - back, method="exact").pvalue)

    for end, inwards in ((np.log(low), 1e-9), (np.log(high), -1e-9)):
        assert level(end - inwards) <= 1 - confidence + 0.018 < level(end + inwards) + 0.02
        assert level(end - inwards) < level(end + inwards)


def test_one_interrupted_block_moves_nothing() -> None:
    random = np.random.default_rng(0)
    dense, small = (np.exp(random.normal(0, 0.01, (15, 10))) for _ in range(2))
    quiet = speedup(dense, small)
    small[4] *= 20
    assert speedup(dense, small) == pytest.approx(quiet, rel=0.01)


def test_speedup_is_ordered_and_narrower_where_less_is_claimed() -> None:
    random = np.random.default_rng(0)
    dense, small = np.exp(random.normal(1, 0.1, (15, 10))), np.exp(random.normal(0, 0.1, (15, 10)))
    ratio, low, high = speedup(dense, small)
    _, narrow_low, narrow_high = speedup(dense, small, confidence=0.5)
    assert low <= narrow_low <= ratio <= narrow_high <= high
    assert speedup(small, dense) == pytest.approx((1 / ratio, 1 / high, 1 / low))
    assert speedup(dense, dense) == (1.0, 1.0, 1.0)
    for unlike in ((dense[1:], small), (dense[:9], small[:9])):
        with pytest.raises(ValueError, match="one interleaved run"):
            speedup(*unlike)


class Machine:
    """Two networks whose threads keep spinning for 40 ms, and slow each other down as long as they do."""

    def __init__(self) -> None:
        self.ran: dict[str, float] = {}

    def call(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            others = max((at for other, at in self.ran.items() if other != name), default=-1.0)
            contended = time.perf_counter() - others < 0.04
            time.sleep(seconds + 0.006 * contended)
            self.ran[name] = time.perf_counter()

        return run


@pytest.mark.slow
def test_real_settling_times_keep_subjects_out_of_each_others_way() -> None:
    """The protocol as it is used, by the real clock."""

    def timed(**settings: float) -> dict[str, Array]:
        machine = Machine()
        return interleave({"dense": machine.call("dense", 0.008), "small": machine.call("small", 0.002)}, seconds=0.6, **settings)

    times = timed()
    assert min(len(ms) for ms in times.values()) >= timing.MIN_BLOCKS
    assert 3.0 < speedup(times["dense"], times["small"])[0] < 4.5
    assert np.quantile(times["small"][:, 0], 0.8) < 5.0
    assert np.quantile(timed(settle_s=0.0)["small"][:, 0], 0.8) > 7.0, "the test sees what settling is for"


@pytest.fixture
def little_garbage() -> Iterator[None]:
    """What is there already is not looked at when a run collects garbage."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def picked(seed: int, slow: float, noise: float = 0.1) -> Fastest:
    """The fastest of six calls, by a clock that they move; all take a millisecond, and the last of them `slow` times that."""
    random, now = np.random.default_rng(seed), [0.0]

    def call(ms: float) -> Callable[[], None]:
        def run() -> None:
            now[0] += ms / 1000 * np.exp(random.normal(0, noise))

        return run

    calls = {str(i): call(slow if i == 5 else 1.0) for i in range(6)}
    return fastest(calls, screen_s=0.02, seconds=0.03, settle_s=0.0, clock=lambda: now[0])


@pytest.mark.usefixtures("little_garbage")
def test_winners_are_timed_again_and_ties_are_called_ties() -> None:
    ties = [picked(seed, 1.0) for seed in range(40)]
    assert np.mean([one.tie for one in ties]) > 0.85, "as often as the interval covers 1"
    first = np.median([one.screened_ms[one.name] for one in ties])
    second = np.median([one.ms for one in ties])
    assert first < 0.985 < second < 1.015, "the run that picked a winner is biased in its favour"
    clear = picked(0, 0.6)
    assert (clear.name, clear.tie) == ("5", False)
    assert clear.lead is not None and clear.lead[1] > 1.4
    assert set(clear.times) == {"5", clear.runner_up}
    assert set(clear.screened_ms) == set("012345")


def test_a_lone_candidate_has_times_and_no_lead() -> None:
    now = [0.0]

    def run() -> None:
        now[0] += 0.002

    only = fastest({"only": run}, clock=lambda: now[0])
    assert (only.name, only.runner_up, only.lead, only.tie) == ("only", None, None, False)
    assert only.ms == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no calls"):
        fastest({})
