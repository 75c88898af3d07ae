"""Bounds on differences of accuracy, and the fixed-sequence rule over levels: arrays in, arrays out, so that a simulation can run them.

Differences are in points, ticket minus reference, paired by seed. The bounds are Student's t over seeds, for trainings judged on these
validation images. Accuracy is a count of images, so that seeds may tie: the spread is never taken for less than one image in one seed, and
half a step of the mean is added (a continuity correction). No interval has zero width. Differences over seeds are taken for normal: a rare
failure of trainings, which a few seeds do not show, is not covered.

Fixed-sequence testing (Maurer, Hothorn & Lehmacher 1995): hypotheses in an order that was fixed before the data, each tested at the full
level, up to the first that is not rejected. The chance of any false rejection stays at that level, without a correction for their number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_SEEDS = 3

Array = NDArray[np.floating[Any]]


def lower_bounds(differences: Array, confidence: float, images: float) -> Array:
    """One-sided lower bounds (...) of the means over seeds of `differences` (..., seeds), in points.

    `images` is how many validation images each accuracy counts.
    """
    low: Array = differences.mean(axis=-1) - _half_width(differences, confidence, images)
    return low


def interval(differences: Array, confidence: float, images: float) -> tuple[Array, Array]:
    """The ends (...), (...) of the two-sided interval around the means over seeds of `differences` (..., seeds), in points."""
    mean, half = differences.mean(axis=-1), _half_width(differences, (1 + confidence) / 2, images)
    return mean - half, mean + half


def _half_width(differences: Array, confidence: float, images: float) -> Array:
    from scipy import stats

    seeds, step = differences.shape[-1], 100 / images
    quantile = float(stats.t.ppf(confidence, seeds - 1))
    spread = np.maximum(differences.std(axis=-1, ddof=1), step / math.sqrt(seeds))  # of one image in one seed
    half: Array = quantile * spread / math.sqrt(seeds) + step / (2 * seeds)
    return half


def image_lower_bounds(changes: Array, confidence: float) -> Array:
    """One-sided lower bounds (...), in points, of the means over images of `changes` (..., images), each in [-1, 1].

    A change is 1 for an image that only the ticket has right, -1 for one that only the reference has. Two images are added, one of each
    (Bonett & Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data"). These bounds
    describe the two trained networks on these images, and nothing of other trainings.
    """
    from scipy import stats

    count = changes.shape[-1] + 2
    mean = changes.sum(axis=-1) / count
    variance = ((changes**2).sum(axis=-1) + 2) / count - mean**2
    low: Array = 100 * (mean - float(stats.norm.ppf(confidence)) * np.sqrt(variance / count))
    return low


def levels_passed(lows: Array, margin_points: float) -> NDArray[np.integer[Any]]:
    """How many levels (...) pass before the first that fails, of lower bounds (..., levels) in the order of testing."""
    passed: NDArray[np.integer[Any]] = np.cumprod(lows > -margin_points, axis=-1).sum(axis=-1)
    return passed
