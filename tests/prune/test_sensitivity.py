"""Sensitivity: every row is the score of the cut that it names, rows are measured once, and the file is of one network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ltcompile as lt
from ltcompile.errors import InvalidFile, InvalidSetting, LtcompileError

EXAMPLE = torch.zeros(1, 1, 8, 8)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 4, 3), nn.Flatten(), nn.Linear(64, 3))


def size(model: nn.Module) -> float:
    assert not model.training
    return float(sum(p.numel() for p in model.parameters()))


def test_a_row_is_the_score_of_a_cut_of_one_group_alone() -> None:
    found = lt.sensitivity(network(), EXAMPLE, size)
    assert found.dense == size(network().eval())
    rows = {(row.group, row.kept): row for row in found.rows}
    assert {kept for name, kept in rows if name == "0"} == set(range(1, 10))
    assert {kept for name, kept in rows if name == "3"} == {1, 2, 3}
    for (name, kept), row in rows.items():
        left = {"0": (kept, 4), "3": (10, kept)}[name]
        assert row.score == 10 * left[0] - 10 * left[0] + left[0] * (9 + 1 + 2) + left[1] * (9 * left[0] + 1) + 3 * (16 * left[1] + 1)
        assert row.ratio == pytest.approx(1 - kept / row.width)
    limited = lt.sensitivity(network(), EXAMPLE, size, (0.5,), limits=lt.Limits(keep=("0",)))
    assert [(row.group, row.kept) for row in limited.rows] == [("3", 2)]


def test_it_drops_the_lowest_ranked_channels() -> None:
    model = network()
    model[0].weight.data[3:8] *= 1e-3
    kept = list[float]()
    lt.sensitivity(model, EXAMPLE, lambda small: kept.append(float(small[0].weight.detach().abs().amax((1, 2, 3)).min())) or 0.0, (0.5,))
    assert kept[0] < 1e-2 < kept[1], "the whole network first; five small filters went"


def test_rows_are_measured_once_and_the_file_is_of_one_network(tmp_path: Path) -> None:
    file, seen = tmp_path / "rows.json", list[int]()

    def score(model: nn.Module) -> float:
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return size(model)

    with pytest.raises(KeyboardInterrupt):
        lt.sensitivity(network(), EXAMPLE, score, output=file)
    assert len(json.loads(file.read_text())["rows"]) == 3
    whole = lt.sensitivity(network(), EXAMPLE, score, output=file)
    assert whole == lt.sensitivity(network(), EXAMPLE, size) and len(seen) == 5 + len(whole.rows) - 3
    with pytest.raises(InvalidFile, match="another network"):
        lt.sensitivity(network(1), EXAMPLE, size, output=file)
    whole.write_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "channels cut" in text and "src=" not in text[: text.find("<script")], "nothing is fetched"
    with pytest.raises(InvalidSetting, match="between 0 and 1"):
        lt.sensitivity(network(), EXAMPLE, size, (0.0,))


@pytest.mark.parametrize("value", ["high", None, float("nan"), torch.ones(2)])
def test_a_score_is_a_finite_number(value: Any) -> None:
    with pytest.raises(InvalidSetting, match="must return a finite number"):
        lt.sensitivity(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), torch.randn(1, 3, 4, 4), lambda small: value, (0.5,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"align": 0},
        {"align": -4},
        {"align": 1.5},
        {"ratio": "half"},
        {"criterion": ["l1"]},
        {"criterion": "energy", "inputs": 3},
        {"scope": "some"},
    ],
)
def test_plans_refuse_nonsense(wrong: dict[str, Any]) -> None:
    with pytest.raises(LtcompileError):
        lt.plan(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), torch.randn(1, 3, 4, 4), **wrong)
