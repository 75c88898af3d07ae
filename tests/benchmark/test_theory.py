"""bench/theory_against_measurement.py: the files of all machines are valid, and the page is made of whatever rows there are."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from quickly import timed_at_once
from torch import nn

import ltcompile as lt

SCRIPT = Path(__file__).parents[2] / "bench" / "theory_against_measurement.py"


@pytest.fixture(scope="module")
def theory() -> ModuleType:
    spec = importlib.util.spec_from_file_location("theory_against_measurement", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(theory: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of a small network and its half, in one cell that runs and one that does not."""
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)
    ).eval()
    example, folder = torch.randn(1, 3, 8, 8), tmp_path_factory.mktemp("theory")
    small = lt.cut(dense, lt.plan(dense, example, target_macs=0.5)).eval()
    full, cut = lt.size(dense, example), lt.size(small, example)
    about = {"network": "ours:test", "method": "as they come", "fraction": 0.5, "macs": cut.macs, "dense_macs": full.macs}
    about |= {"theoretical": full.macs / cut.macs, **theory.traits(small, example)}
    cells = [("onnxruntime", "fp32", 1), ("mnn", "int8", 1)]
    with timed_at_once():
        return list(theory.measured({"dense": dense, "small": small}, {"small": about}, example, folder, cells))


def test_a_row_holds_both_speedups_and_what_decides(theory: ModuleType, rows: list[dict[str, Any]]) -> None:
    timed, left_out = rows
    assert theory.faults({"kind": "theory", "rows": rows, "settings": {}, "provenance": {}}) == []
    assert timed["of_theory"] == timed["speedup"] / timed["theoretical"] and timed["error"] <= 1e-4
    assert 0 < timed["depthwise"] < 1 and timed["memory"] > 0 and "int8" in left_out["reason"]


def test_faults_are_found(theory: ModuleType, rows: list[dict[str, Any]]) -> None:
    file = {"kind": "theory", "rows": rows[:1], "settings": {}, "provenance": {}}
    changes = [{"speedup": 99.0}, {"ms": float("nan")}, {"runtime": "abacus"}, {"macs": None}, {"of_theory": 1e3}, {"method": "luck"}]
    assert all(theory.faults({**file, "rows": [{**rows[0], **change}]}) for change in changes)
    assert (
        theory.faults({**file, "rows": 2 * rows[:1]}) == ["row 1 is there twice"]
        and theory.faults([])
        and theory.faults({**file, "kind": "x"})
    )


def test_the_files_of_all_machines_are_valid(theory: ModuleType) -> None:
    for path in theory.RESULTS.glob("*.json"):
        assert theory.faults(json.loads(path.read_text())) == [], path


def test_a_page_is_made_of_whatever_rows_there_are(
    theory: ModuleType, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theory, "RESULTS", tmp_path)
    assert theory.page()["rows"] == 0
    theory.write(tmp_path / "here.json", rows)
    found = theory.page()
    assert found["rows"] == found["networks"] == 1
    text, drawn = (tmp_path / "README.md").read_text(), (tmp_path / "picture.svg").read_text()
    assert "ours:test" in text and "`here`" in text and drawn.count("<circle") == 1 + len(theory.RUNTIMES)


def test_networks_of_all_families_come_in_turns(theory: ModuleType) -> None:
    """So that a part of a run says something of each."""
    assert len(set(theory.NETWORKS)) == len(theory.NETWORKS) >= 40
    assert {name.partition(":")[0] for name in theory.NETWORKS[:8]} == {"torchvision", "ours", "yolo", "smp"}
