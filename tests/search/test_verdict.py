"""The verdict: a stated rule, on validation data, that says so when nothing won, a control did as well, or seeds are too few."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ltcompile.core.records import Trained
from ltcompile.core.task import Metric
from ltcompile.search.inference import image_lower_bounds, interval, levels_passed, lower_bounds
from ltcompile.search.verdict import choose_level, difference, gap, judge, typical_seed

IMAGES = 1000
STEP = 100 / IMAGES  # points that one image is worth


def row(seed: int, arm: str, level: int, accuracy: float, macs: int = 100) -> Trained:
    right = np.arange(IMAGES) < round(accuracy * IMAGES)
    bits = f"{int(''.join('1' if r else '0' for r in right), 2):0{IMAGES // 4}x}"
    return Trained(seed, arm, level, 10, 1000, macs, 5, 1.0, 0.1, 0.99, 0.1, accuracy, bits, 4)  # type: ignore[arg-type]


def search(ticket_accuracies: dict[int, list[float]], dense: list[float], **controls: list[float]) -> list[Trained]:
    rows = [row(s, "dense", 0, a) for s, a in enumerate(dense)]
    rows += [row(s, "ticket", level, a, 100 // (2**level)) for level, all_ in ticket_accuracies.items() for s, a in enumerate(all_)]
    return rows + [row(s, arm, 2, a) for arm, all_ in controls.items() for s, a in enumerate(all_)]


# The rule by simulation: runs x levels x seeds at once


RUNS, LEVELS = 20_000, np.arange(1, 9)
NOISE = 3 * math.sqrt(0.05 * 0.95 / RUNS)  # three standard errors of a simulated share of 5 %


def curve(kind: str, margin: float) -> np.ndarray:
    """What the levels (8,) lose in truth, in points; a level that loses the margin or more is inferior."""
    return {
        "boundary": np.full(8, -margin),
        "flat": np.full(8, -margin - 0.05),
        "falling": -margin * LEVELS / 4,
        "falling slowly": -margin * (0.8 + 0.05 * LEVELS),
        "falling steeply": np.where(LEVELS < 4, 0.0, -margin - 4.0 * (LEVELS - 4)),
        "a dip at level 2": np.where(LEVELS == 2, -margin, 0.0),
    }[kind]


def accuracies(rng: np.random.Generator, truth: np.ndarray, sd: float, seeds: int, images: int) -> np.ndarray:
    """Accuracies (runs, levels, seeds) in points: whole counts of images, whose mean is exactly what `truth` (levels,) says."""
    exact = rng.normal(95, sd, (RUNS, len(truth), seeds)) + truth[:, None]
    return np.floor(exact * images / 100 + rng.random(exact.shape)) * 100 / images


@pytest.mark.parametrize("kind", ["boundary", "flat", "falling", "falling slowly", "falling steeply", "a dip at level 2"])
@pytest.mark.parametrize("seeds", [3, 5])
def test_an_inferior_level_wins_in_at_most_5_percent(kind: str, seeds: int) -> None:
    rng = np.random.default_rng(1)
    for images, sd, margin in ((448, 0.3, 0.5), (448, 1.0, 1.0), (5000, 0.05, 0.5), (5000, 0.3, 1.0)):
        truth = curve(kind, margin)
        gaps = accuracies(rng, truth, sd, seeds, images) - accuracies(rng, np.zeros(1), sd, seeds, images)
        passed = levels_passed(lower_bounds(gaps, 0.95, images), margin)
        wrong = (passed > 0) & (truth[passed - 1] <= -margin)
        assert wrong.mean() <= 0.05 + NOISE, (images, sd, margin)


def test_good_levels_win() -> None:
    """The rule is not merely shy: with 5 seeds, levels as good as dense pass, and the first bad one stops it."""
    rng, truth = np.random.default_rng(2), np.array([0.0, 0.0, 0.0, -6.0, 0.0])
    gaps = accuracies(rng, truth, 0.3, 5, 5000) - accuracies(rng, np.zeros(1), 0.3, 5, 5000)
    assert (levels_passed(lower_bounds(gaps, 0.95, 5000), 1.0) == 3).mean() > 0.9


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_gaps_hold_the_truth_in_95_percent(seeds: int) -> None:
    rng = np.random.default_rng(3)
    for images, sd in ((448, 0.3), (448, 1.0), (5000, 0.3)):
        truth = np.array([0.37])
        low, high = interval(accuracies(rng, truth, sd, seeds, images) - accuracies(rng, 0 * truth, sd, seeds, images), 0.95, images)
        assert ((low <= truth) & (truth <= high)).mean() >= 0.95 - NOISE, (images, sd)


def test_without_ties_the_bound_is_students_t_and_half_a_step() -> None:
    gaps = np.array([1.0, 2.0, 0.0])
    low = 1.0 - stats.t.ppf(0.95, 2) * gaps.std(ddof=1) / math.sqrt(3)
    assert lower_bounds(gaps, 0.95, IMAGES) == pytest.approx(low - STEP / 6)


def test_ties_leave_no_interval_without_width() -> None:
    low, high = interval(np.full(3, 0.4), 0.95, IMAGES)
    assert high - low == pytest.approx(2 * (stats.t.ppf(0.975, 2) * STEP / 3 + STEP / 6))
    same = [row(s, "ticket", 1, 0.9) for s in range(3)], [row(s, "dense", 0, 0.9) for s in range(3)]
    assert difference(*same, 0.95)["low"] < -STEP
    assert image_lower_bounds(np.zeros(IMAGES), 0.95) == pytest.approx(-100 * stats.norm.ppf(0.95) * math.sqrt(2) / (IMAGES + 2))


# The verdict of rows


def test_levels_are_tested_down_to_the_first_failure() -> None:
    rows = search({1: [0.90] * 3, 2: [0.899] * 3, 3: [0.85] * 3, 4: [0.90] * 3}, [0.90] * 3)
    level, differences = choose_level(rows, 0.5, 0.95)
    assert level == 2 and differences[3]["low"] < -0.5 < differences[4]["low"], "level 4 is behind a failure"


def test_a_noisy_ticket_does_not_win_by_its_mean() -> None:
    rows = search({1: [0.96, 0.84, 0.91]}, [0.90] * 3)
    assert choose_level(rows, 0.5, 0.95)[0] is None


def test_the_test_set_decides_nothing() -> None:
    rows = search({1: [0.90] * 3, 2: [0.899] * 3}, [0.90] * 3, random=[0.80] * 3, dense_budget=[0.90] * 3)
    shown = [replace(r, test_score=0.1 * r.level) for r in rows]
    assert judge(rows, 0.5, 0.95, "lr") == judge(shown, 0.5, 0.95, "lr")


def test_a_clear_winner_has_all_five_flags() -> None:
    verdict = judge(search({1: [0.90] * 3, 2: [0.902] * 3}, [0.90] * 3, random=[0.85] * 3, dense_budget=[0.901] * 3), 0.5, 0.95, "lr")
    assert verdict.won and verdict.level == 2 and all(verdict.flags.values()) and len(verdict.flags) == 5
    assert "Level 2 won" in verdict.summary[0] and "It beats" in verdict.summary[1] and "3 seeds" in verdict.rule
    assert verdict.gaps["random"]["mean"] == pytest.approx(5.2) and 4.8 < verdict.gaps["random"]["low"] < 5.2  # type: ignore[operator]
    assert verdict.includes(1) and verdict.includes(2) and not verdict.includes(3) and not verdict.includes(0)


def test_a_control_that_did_as_well_is_reported() -> None:
    verdict = judge(search({1: [0.90] * 3, 2: [0.902] * 3}, [0.90] * 3, random=[0.903] * 3, dense_budget=[0.92] * 3), 0.5, 0.95, "lr")
    assert verdict.flags == {"1": False, "2": False, "3": False, "4": True, "5": False}
    assert any("not shown to beat" in line for line in verdict.summary)


def test_a_lead_that_seeds_do_not_agree_on_beats_no_control() -> None:
    tickets = [0.91, 0.93, 0.92]
    verdict = judge(search({1: tickets, 2: tickets}, [0.90] * 3, random=[0.92, 0.89, 0.92]), 0.5, 0.95, "lr")
    found = verdict.gaps["random"]
    assert found["mean"] == pytest.approx(1.0) and found["low"] < 0 < found["high"]  # type: ignore[operator]
    assert any("not shown to beat" in line for line in verdict.summary)


def test_no_winner_is_reported_with_the_closest() -> None:
    verdict = judge(search({1: [0.88] * 3, 2: [0.80] * 3}, [0.90] * 3), 0.5, 0.95, "lr")
    assert verdict.decided and not verdict.won and "No ticket won" in verdict.summary[0] and "level 1" in verdict.summary[0]
    assert verdict.flags["2"] is None and "control arms" in verdict.flag_reasons["2"] and not verdict.gaps


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_decide_nothing(seeds: int) -> None:
    rows = search({1: [0.90] * seeds, 2: [0.902] * seeds, 3: [0.5] * seeds}, [0.90] * seeds, random=[0.85] * seeds)
    verdict = judge(rows, 0.5, 0.95, "lr")
    assert (verdict.level, verdict.decided, verdict.won) == (2, False, False)
    assert "not decided between trainings" in verdict.rule and f"{IMAGES} validation images" in verdict.rule
    assert verdict.summary[0].startswith("Not decided between trainings") and "won" not in " ".join(verdict.summary)
    assert verdict.gaps["random"] == {"mean": pytest.approx(5.2), "low": None, "high": None, "seeds": seeds}
    assert not any("beats" in line for line in verdict.summary)


def test_below_three_seeds_images_bound_the_pick() -> None:
    found = difference([row(0, "ticket", 1, 0.91)], [row(0, "dense", 0, 0.90)], 0.95)
    gained, lost, n = 11 / (IMAGES + 2), 1 / (IMAGES + 2), IMAGES + 2  # one image added to each
    wald = gained - lost - stats.norm.ppf(0.95) * math.sqrt((gained + lost - (gained - lost) ** 2) / n)
    assert found["n"] == IMAGES and found["mean"] == pytest.approx(1.0) and found["low"] == pytest.approx(100 * wald)


def test_values_of_items_bound_the_pick_in_the_units_of_the_metric() -> None:
    psnr, rng = Metric("PSNR", "dB", 1.0), np.random.default_rng(0)
    ours, theirs = rng.normal(30, 3, 40), rng.normal(30, 3, 40)
    rows = [
        replace(row(0, arm, level, 0.5), val_score=float(values.mean()), val_correct="", val_items=values.tolist())
        for arm, level, values in (("dense", 0, theirs), ("ticket", 1, ours))
    ]
    found = difference(rows[1:], rows[:1], 0.95, psnr)
    paired = stats.ttest_1samp(ours - theirs, 0, alternative="greater").confidence_interval(0.95)
    assert found == {"mean": pytest.approx((ours - theirs).mean()), "low": pytest.approx(paired.low), "n": 40}
    verdict = judge(rows, 100, 0.95, "lr", psnr)
    assert "over 40 validation images" in verdict.rule and f"lower bound over validation images {found['low']:+.2f}" in verdict.summary[1]
    assert "val_items" not in row(0, "dense", 0, 0.5).to_json() and Trained.from_json(rows[0].to_json()) == rows[0]


def test_padding_of_the_bit_string_is_no_image() -> None:
    rows = [replace(row(0, arm, level, 0.9), val_score=2 / 5, val_correct=bits) for arm, level, bits in (("d", 0, "11"), ("t", 1, "11"))]
    assert difference(rows[1:], rows[:1], 0.95)["n"] == 5


def test_the_saved_weights_are_not_the_luckiest() -> None:
    tickets = [row(seed, "ticket", 2, accuracy) for seed, accuracy in enumerate((0.93, 0.91, 0.92, 0.90))]
    assert typical_seed(tickets[:1]) == 0 and typical_seed(tickets[:3]) == 2 and typical_seed(tickets) == 1
    verdict = judge(search({1: [0.92, 0.90, 0.91]}, [0.90] * 3), 0.5, 0.95, "lr")
    assert "seed 2" in verdict.seed_rule and "median" in verdict.seed_rule and verdict.summary[-1].startswith("The saved weights")


def test_gaps_pair_the_seeds_that_both_have() -> None:
    tickets = [row(seed, "ticket", 1, 0.9) for seed in range(4)]
    control = [row(seed, "random", 1, 0.89 if seed else 0.1) for seed in (1, 2, 3)]
    found = gap(tickets, control, 0.95)
    assert found["seeds"] == 3 and found["mean"] == pytest.approx(1.0)
