"""The verdict: a stated rule, on validation data, that says so when nothing won or a control did as well."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ltcompile.core.records import Trained
from ltcompile.finding.verdict import choose_level, difference, judge

IMAGES = 1000


def row(seed: int, arm: str, level: int, accuracy: float, macs: int = 100) -> Trained:
    right = np.arange(IMAGES) < round(accuracy * IMAGES)
    bits = f"{int(''.join('1' if r else '0' for r in right), 2):0{IMAGES // 4}x}"
    return Trained(seed, arm, level, 10, 1000, macs, 5, 1.0, 0.1, 0.99, 0.1, accuracy, bits, 4)  # type: ignore[arg-type]


def search(ticket_accuracies: dict[int, list[float]], dense: list[float], **controls: list[float]) -> list[Trained]:
    rows = [row(s, "dense", 0, a) for s, a in enumerate(dense)]
    rows += [row(s, "ticket", level, a, 100 // (2**level)) for level, all_ in ticket_accuracies.items() for s, a in enumerate(all_)]
    return rows + [row(s, arm, 2, a) for arm, all_ in controls.items() for s, a in enumerate(all_)]


def test_seeds_are_samples_from_three_on() -> None:
    tickets, dense = (
        [row(s, "ticket", 1, a) for s, a in enumerate((0.91, 0.92, 0.90))],
        [row(s, "dense", 0, a) for s, a in enumerate((0.90,) * 3)],
    )
    found = difference(tickets, dense, 0.95)
    gaps = np.array([1.0, 2.0, 0.0])
    assert found["n"] == 3 and found["mean"] == pytest.approx(1.0)
    assert found["low"] == pytest.approx(1.0 - stats.t.ppf(0.95, 2) * gaps.std(ddof=1) / np.sqrt(3))


def test_images_are_samples_below_three_seeds() -> None:
    found = difference([row(0, "ticket", 1, 0.91)], [row(0, "dense", 0, 0.90)], 0.95)
    gaps = np.r_[np.zeros(990), np.full(10, 100.0)]
    assert found["n"] == IMAGES and found["mean"] == pytest.approx(1.0)
    assert found["low"] == pytest.approx(1.0 - stats.norm.ppf(0.95) * gaps.std(ddof=1) / np.sqrt(IMAGES))


def test_the_smallest_ticket_that_is_not_inferior_wins() -> None:
    rows = search({1: [0.90] * 3, 2: [0.899] * 3, 3: [0.85] * 3}, [0.90] * 3)
    level, differences = choose_level(rows, 0.5, 0.95)
    assert level == 2 and differences[3]["low"] < -0.5


def test_a_noisy_ticket_does_not_win_by_its_mean() -> None:
    rows = search({1: [0.96, 0.84, 0.91]}, [0.90] * 3)
    assert choose_level(rows, 0.5, 0.95)[0] is None


def test_the_test_set_decides_nothing() -> None:
    from dataclasses import replace

    rows = search({1: [0.90] * 3, 2: [0.899] * 3}, [0.90] * 3, random=[0.80] * 3, dense_budget=[0.90] * 3)
    shown = [replace(r, test_accuracy=0.1 * r.level) for r in rows]
    assert judge(rows, 0.5, 0.95, "lr") == judge(shown, 0.5, 0.95, "lr")


def test_a_clear_winner_has_all_five_flags() -> None:
    verdict = judge(search({1: [0.90] * 3, 2: [0.902] * 3}, [0.90] * 3, random=[0.85] * 3, dense_budget=[0.901] * 3), 0.5, 0.95, "lr")
    assert verdict.level == 2 and all(verdict.flags.values()) and len(verdict.flags) == 5
    assert "Level 2 won" in verdict.summary[0] and "beats" in verdict.summary[1] and "3 seeds" in verdict.rule


def test_a_control_that_does_as_well_is_told() -> None:
    verdict = judge(search({1: [0.90] * 3, 2: [0.902] * 3}, [0.90] * 3, random=[0.903] * 3, dense_budget=[0.92] * 3), 0.5, 0.95, "lr")
    assert verdict.flags == {"1": False, "2": False, "3": False, "4": True, "5": False}
    assert any("control did as well" in line for line in verdict.summary)


def test_no_winner_is_told_with_the_closest() -> None:
    verdict = judge(search({1: [0.88] * 3, 2: [0.80] * 3}, [0.90] * 3), 0.5, 0.95, "lr")
    assert verdict.level is None and "No ticket won" in verdict.summary[0] and "level 1" in verdict.summary[0]
    assert verdict.flags["2"] is None and "control arms" in verdict.flag_reasons["2"]


def test_few_seeds_are_told() -> None:
    verdict = judge(search({1: [0.90]}, [0.90]), 0.5, 0.95, "lr")
    assert "validation images" in verdict.rule and "not the spread" in verdict.summary[-1]
