"""bench/theory_against_measurement.py: the files of all machines are valid, and the page is made of whatever rows there are."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import ltcompile as lt
from ltcompile.lower.answers import probe

pytestmark = pytest.mark.slow

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def theory() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield importlib.import_module("theory_against_measurement")


@pytest.fixture(scope="module")
def table(theory: ModuleType) -> ModuleType:
    return importlib.import_module("_theory_rows")


@pytest.fixture(scope="module")
def rows(theory: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of a small network and its half, in fp32 and by MNN's quantiser."""
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
    return list(theory.measured({"dense": dense, "small": small}, {"small": about}, example, folder, cells))


@pytest.fixture
def file(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"kind": "theory", "rows": rows, "settings": {}, "provenance": {"machine": {"cpu": "A processor"}}}


def test_a_row_holds_both_speedups_and_what_decides(table: ModuleType, rows: list[dict[str, Any]], file: dict[str, Any]) -> None:
    timed = rows[0]
    assert table.faults(file) == [] and [(row["runtime"], row["precision"]) for row in rows] == [("onnxruntime", "fp32"), ("mnn", "int8")]
    assert 1e-4 < rows[1]["error"] <= 0.25, "int8 rounds, and less than the bound"
    assert timed["of_theory"] == timed["speedup"] / timed["theoretical"] and timed["error"] <= 1e-4
    assert 0 < timed["depthwise"] < 1 and timed["memory"] > 0


def test_a_network_that_does_not_run_has_its_reason_and_no_other_row_ends(theory: ModuleType, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    example = torch.randn(1, 3, 2, 2)
    images = probe(network, example, 16).tensors[0].numpy()
    files, expected = theory.written({"dense": network, "small": network}, example, images, tmp_path, [("onnxruntime", "fp32", 2)])
    given = {"dense": files["dense", "fp32"], "small": files["small", "fp32"], "refused": "it cannot be quantized"}
    wrong = {**expected, "refused": [], "small": [expected["small"][0] + 1]}
    times, errors, reasons = theory.timed(given, wrong, images[:2], "onnxruntime", "fp32", 2)
    assert list(times) == ["dense"] and errors["dense"] <= 1e-4
    assert reasons["refused"] == "it cannot be quantized" and "off by" in reasons["small"]


def test_signals_of_fresh_networks_do_not_fade(theory: ModuleType) -> None:
    """They change by one factor, so that no error relative to them does."""
    torch.manual_seed(0)
    layers = [[nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()] for _ in range(6)]
    network, images = nn.Sequential(*(layer for block in layers for layer in block)).eval(), torch.randn(4, 8, 6, 6)
    with torch.no_grad():
        before = network(images)
        theory.hold_signals(network, images)
        after = network(images)
        norm, seen = network[-2], float(network[:-2](images).square().mean())
        assert network[:-1](images).square().mean() == pytest.approx(seen / (seen + norm.eps), rel=1e-4)  # one, but for eps
        assert before.square().mean() < 0.01
    torch.testing.assert_close(after * (before.norm() / after.norm()), before, rtol=1e-3, atol=1e-3 * float(before.max()))


CHANGES = [
    {"speedup": 99.0}, {"ms": float("nan")}, {"ms": True}, {"runtime": "abacus"}, {"macs": None}, {"of_theory": 1e3}, {"method": "luck"},
    {"theoretical": 0}, {"dense_macs": 1}, {"network": "<script>"}, {"network": 7}, {"batch": 3}, {"reason": ""},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_faults_of_a_row_are_found(table: ModuleType, file: dict[str, Any], change: dict[str, Any]) -> None:
    assert table.faults({**file, "rows": [{**file["rows"][0], **change}]})


def test_faults_of_a_file_are_found(table: ModuleType, file: dict[str, Any]) -> None:
    assert table.faults({**file, "rows": 2 * file["rows"][:1]}) == ["row 1 is there twice"]
    for value in ([], {**file, "kind": "x"}, {**file, "rows": [3]}, {**file, "provenance": {}}, {**file, "provenance": {"machine": None}}):
        assert table.faults(value)


def test_the_files_of_all_machines_are_valid_and_the_page_is_theirs(table: ModuleType) -> None:
    machines = {path.stem: json.loads(path.read_text()) for path in sorted(table.RESULTS.glob("*.json"))}
    assert machines and {name: table.faults(value) for name, value in machines.items()} == {name: [] for name in machines}
    page = importlib.import_module("_theory_page")
    rows = page.measured(machines)
    assert (table.RESULTS / "README.md").read_text() == page.page(machines, rows), "run bench/theory_against_measurement.py --page"
    assert (table.RESULTS / "picture.svg").read_text() == page.picture(rows)


def test_a_page_is_made_of_whatever_rows_there_are(
    table: ModuleType, file: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of none; of one machine; of two, whose common cuts count once for each network."""
    page, timed = importlib.import_module("_theory_page"), file["rows"][0]
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    assert page.write_page()["rows"] == 0
    again = {**timed, "method": "multiples of 8", "of_theory": timed["of_theory"] * 3, "speedup": timed["speedup"] * 3, "high": 1e9}
    for name, rows in (("here", [timed, again]), ("there", [timed])):
        (tmp_path / f"{name}.json").write_text(json.dumps({**file, "rows": rows}))
        found = page.write_page()
    assert found["networks"] == 1 and found["rows"] == 3
    text, drawn = (tmp_path / "README.md").read_text(), (tmp_path / "picture.svg").read_text()
    shared = text.split("## The same cuts on all machines")[1].split("##")[0]
    assert shared.count("| onnxruntime | fp32 | 1 | 0.5 |") == 1 and shared.rstrip().endswith("| 1 |")
    by_time = {
        **timed,
        "method": "by time",
        "macs": 1,
        "theoretical": timed["dense_macs"],
        "of_theory": timed["speedup"] / timed["dense_macs"],
    }
    _, _, cells, _, networks = page.planned_by_time([timed, by_time, {**timed, "network": "elsewhere"}])
    line, speedup = cells.splitlines()[2], f"{timed['speedup']:.2f}x"
    assert line.startswith(f"| onnxruntime | fp32 | 1 | 2x | {speedup} (1) | ") and f"| {speedup} (1) | 0% |" in line
    assert networks.splitlines()[2] == f"| {timed['network']} | {speedup} ({timed['low']:.2f} to {timed['high']:.2f}), 0% |"
    assert "by time" not in page.by_runtime(page.by_macs([timed, by_time]))
    (tmp_path / "there.json").write_text(json.dumps({**file, "rows": [{**timed, "network": "torchvision:resnet18"}]}))
    page.write_page()
    text = (tmp_path / "README.md").read_text()
    assert "No cut was measured on all machines: their files are of different networks" in text
    assert f"{len(table.NETWORKS) - 1} of the {len(table.NETWORKS)} networks of the list were measured on no machine" in text
    assert text.count("## A processor") == 2 and "1 networks" not in text and drawn.count("<title>") == 3


def test_a_file_with_faults_makes_no_page(table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    for text, says in (("{}", r"here\.json: it is not a file of"), ('{"kind": ', r"here\.json is not JSON: .* fix the file, or remove it")):
        (tmp_path / "here.json").write_text(text)
        with pytest.raises(SystemExit, match=says):
            importlib.import_module("_theory_page").write_page()


def test_networks_of_all_families_come_in_turns(theory: ModuleType) -> None:
    """So that a part of a run says something of each."""
    assert len(set(theory.NETWORKS)) == len(theory.NETWORKS) >= 40
    assert {name.partition(":")[0] for name in theory.NETWORKS[:8]} == {"torchvision", "ours", "yolo", "smp"}
