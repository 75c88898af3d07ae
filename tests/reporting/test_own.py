"""The page of a network of one's own: of a search in one's own loop, and of a `Pruned`."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile.cli import app
from ltcompile.errors import InvalidFile, InvalidSetting

ERROR = lt.Metric("depth error", "cm", 100.0, higher_is_better=False)
CLASSIFYING = re.compile(r"accura|class|image|label|filter", re.IGNORECASE)


def build() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 16, 3), nn.ReLU(), nn.Conv1d(16, 16, 3), nn.ReLU(), nn.Conv1d(16, 1, 1))


def text(page: Path) -> str:
    shown = re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", shown)).replace("\xa0", " ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("own") / "depth"
    search = lt.Search(build, torch.randn(2, 2, 12), run, ERROR, rounds=1, margin=5, rewind="lr")
    for arm in search:
        arm.report(0.25 if arm.arm.kind == "ticket" else 0.31)
    lt.bench(search.result(), runtimes=["onnxruntime"], batches=[1], output=run / "bench.json")
    lt.shrink(search.result(), run / "small.onnx")
    return run


def test_a_search_in_ones_own_loop(folder: Path) -> None:
    shown, found = text(lt.report(folder)), json.loads((folder / "report.json").read_text())
    assert "25.00 cm" in shown and "31.00 cm" in shown and "+6.00 cm" in shown, "lower is better, and it is 6 cm better"
    assert "fresh weights" in shown and "whole budget" in shown and found["search"]["won"] is False, "one seed decides nothing"
    assert (
        found["theoretical"] > 1.5
        and found["best"]["theoretical"] == found["theoretical"]
        and f"{found['best']['speedup']:.2f}\u00d7" in shown
    )
    assert [s["output"] for s in found["shrinks"]] == ["small.onnx"]
    assert not CLASSIFYING.findall(shown), CLASSIFYING.findall(shown)
    lt.report(folder)  # over itself


@pytest.mark.slow
def test_a_pruned_and_a_folder_with_its_benchmark(folder: Path, tmp_path: Path) -> None:
    dense, example = build(), torch.randn(2, 2, 12)
    given = lt.Pruned.of_cut(dense, lt.plan(dense, example), example, metric=lt.MetricValue(ERROR, 0.3, "test"))
    lt.bench(given, runtimes=["onnxruntime"], batches=[2], output=tmp_path / "bench.json")
    for page in (lt.report(tmp_path), lt.report(given, tmp_path / "page.html", bench=tmp_path / "bench.json")):
        assert "30.00 cm" in text(page) and "not found by a search" in text(page) and not CLASSIFYING.findall(text(page))
    value = json.loads((tmp_path / "bench.json").read_text())
    rows = [{**row, "speedup": None, "speedup_low": None, "speedup_high": None} for row in value["rows"] if row["subject"] == "small"]
    (tmp_path / "b.json").write_text(json.dumps({**value, "subjects": {"small": value["subjects"]["small"]}, "rows": rows}))
    alone = lt.Pruned(given.small, example)
    assert "the dense network is not known" in text(lt.report(alone, tmp_path / "alone.html", bench=tmp_path / "b.json"))


def test_what_does_not_fit(folder: Path, tmp_path: Path) -> None:
    dense = build()
    given = lt.Pruned(dense, torch.randn(2, 2, 12))
    with pytest.raises(InvalidFile, match="another network"):
        lt.report(given, tmp_path / "page.html", bench=folder / "bench.json")
    with pytest.raises(InvalidSetting, match="output= names the page"):
        lt.report(given)
    with pytest.raises(InvalidSetting, match="bench= belongs to a Pruned"):
        lt.report(folder, bench=folder / "bench.json")
    value = json.loads((folder / "own-search.json").read_text())
    (tmp_path / "own-search.json").write_text(json.dumps({**value, "rows": "none"}))
    with pytest.raises(InvalidFile, match="rows"):
        lt.report(tmp_path)
    (tmp_path / "own-search.json").write_text(json.dumps({**value, "rows": []}))
    with pytest.raises(InvalidFile, match="no 'dense'"):
        lt.report(tmp_path)


def test_a_folder_with_a_repaired_file_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, inputs = (
        nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 4, 3), nn.Flatten(), nn.Linear(64, 5)).eval(),
        torch.randn(64, 3, 8, 8),
    )
    given = lt.Pruned.of_cut(net, lt.plan(net, inputs[:2], 0.5), inputs[:2])
    lt.shrink(given, tmp_path / "small.onnx", repair=[inputs])
    shown, found = text(lt.report(tmp_path)), json.loads((tmp_path / "report.json").read_text())
    repair = found["shrinks"][0]["repair"]
    assert found["theoretical"] > 1.3 and found["rows"] == [] and repair["inputs"] == 64
    for part in (
        "Repair of small.onnx",
        "64 inputs without labels",
        "as cut",
        "3.weight",
        f"{100 * repair['agreement']['repaired']:.1f} %",
    ):
        assert part in shown, part
    verified = lt.verify(tmp_path / "small.onnx", require=["answers"])
    assert {c.what: c.verdict for c in verified.checks if c.what in ("answers", "size", "ticket")} == dict.fromkeys(
        ("answers", "ticket", "size"), "confirmed"
    )
    assert verified.outcome == "not comparable" and not verified.missing


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "name the folder of a run, or a network"),
        (["runs/x", "--model", "net.py:build"], "runs/x is a folder of results"),
        (["runs/x", "--weights", "x.pth"], "--weights belongs to a network of your own"),
        (["--model", "net.py:build"], "--example"),
    ],
)
def test_a_report_has_one_subject(words: list[str], reason: str) -> None:
    done = CliRunner().invoke(app, ["report", *words])
    assert isinstance(done.exception, InvalidSetting) and reason in str(done.exception)
