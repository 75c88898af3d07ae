"""What seeds say: means with Student's t intervals, two-sided at 95 %; differences are taken seed by seed before they are averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from ltcompile.core.study import Estimate

CONFIDENCE = 0.95
BySeed = Mapping[int, float]


def estimate(by_seed: BySeed | Sequence[float]) -> Estimate:
    """The mean of one value a seed; from two seeds on with an interval."""
    from scipy import stats

    values = [*by_seed.values()] if isinstance(by_seed, Mapping) else by_seed
    mean, seeds = fmean(values), len(values)
    if seeds == 1:
        return Estimate(mean, None, None, 1)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1)) * stdev(values) / math.sqrt(seeds)
    return Estimate(mean, mean - half, mean + half, seeds)


def difference(ours: BySeed, theirs: BySeed) -> dict[int, float]:
    """ours - theirs, of every seed that has both."""
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def paired(ours: BySeed, theirs: BySeed) -> Estimate:
    """The mean of ours - theirs over the seeds that both have."""
    return estimate(difference(ours, theirs))


def averaged(parts: Sequence[BySeed]) -> dict[int, float]:
    """Seed by seed, the mean of several numbers, of the seeds that have all of them."""
    seeds = set.intersection(*(set(part) for part in parts))
    return {seed: fmean(part[seed] for part in parts) for seed in sorted(seeds)}
