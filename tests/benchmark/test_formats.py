"""The table of formats: a row for each, with its figures or the reason why it has none."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from searches import QUICK
from torch import nn
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile.benchmark.formats import bench_formats
from ltcompile.cli import app
from ltcompile.core.records import FormatRow
from ltcompile.deploy import formats
from ltcompile.errors import InvalidData, InvalidFile, InvalidSetting, UnknownName
from ltcompile.reporting import units
from ltcompile.runtimes import _venvs
from ltcompile.tasks import Classification

FORMATS = [".mnn", ".safetensors", ".cpp", ".tflite"]


@pytest.fixture(scope="module")
def pruned() -> lt.Pruned:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10)).eval()
    example = torch.randn(2, 1, 8, 8)
    return lt.Pruned.of_cut(dense, lt.plan(dense, example, ratio=0.5), example)


@pytest.fixture(scope="module")
def benched(pruned: lt.Pruned, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[FormatRow], dict[str, object]]:
    """Every row loses more than -1 points: what a floor does that none holds."""
    output, seen = tmp_path_factory.mktemp("formats") / "formats.json", list[FormatRow]()
    task = Classification(lt.load_data("digits", image_size=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(output.parent / "cache"))
        found = bench_formats(pruned, FORMATS, task=task, max_drop=-1.0, seconds=0.01, output=output, on_row=seen.append)
    assert found.rows == seen and found.dropped == [".mnn fp32", ".safetensors fp32"]
    return seen, json.loads(output.read_text())


def test_a_row_has_all_figures_of_a_format_that_runs(benched: tuple[list[FormatRow], dict[str, object]]) -> None:
    rows, written = {row.format: row for row in benched[0]}, benched[1]
    assert [*rows] == FORMATS and [FormatRow.from_json(row) for row in written["rows"]] == benched[0]  # type: ignore[attr-defined]
    for row in (rows[".mnn"], rows[".safetensors"]):
        assert row.ms and row.ms_low and row.ms_low <= row.ms and row.speedup and row.bytes and row.start_s and not row.reason
        assert row.metric == pytest.approx(written["reference"], abs=0.01) and row.max_error is not None and row.max_error <= 1e-4
    assert (rows[".mnn"].threads, rows[".safetensors"].threads) == (1, 0) and rows[".mnn"].peak_bytes is not None
    assert written["dropped"] == [".mnn fp32", ".safetensors fp32"] and written["kind"] == "formats"


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_that_opens_the_file_alone(tmp_path: Path) -> None:
    """By the operating system's figure for such a process, less that of one that imports MNN only."""
    large = lt.Pruned(nn.Sequential(nn.Flatten(), nn.Linear(1024, 8192), nn.ReLU(), nn.Linear(8192, 10)).eval(), torch.randn(1, 1, 32, 32))
    (row,) = bench_formats(large, [".mnn"], seconds=0.01).rows
    path = lt.shrink(large, tmp_path / "large.mnn").path
    run = f"network = MNN.Interpreter({str(path)!r}); network.runSession(network.createSession({{'numThread': 1, 'precision': 'high'}}))"
    code = "import MNN, numpy; {}; print(1024 * int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]))"
    without, alone = (
        int(subprocess.run([sys.executable, "-c", code.format(one)], capture_output=True, check=True).stdout.split()[-1])
        for one in ("pass", run)
    )
    assert row.peak_bytes == pytest.approx(alone - without, rel=0.2)


def test_others_have_a_reason(benched: tuple[list[FormatRow], dict[str, object]]) -> None:
    rows = {row.format: row for row in benched[0]}
    assert "the source of .so" in rows[".cpp"].reason and rows[".cpp"].ms is None
    assert "ltcompile doctor --install litert" in rows[".tflite"].reason and rows[".tflite"].bytes is None


def test_settings_that_make_no_sense(pruned: lt.Pruned) -> None:
    with pytest.raises(UnknownName, match=r"format named '\.tflit'"):
        bench_formats(pruned, [".tflit"])
    with pytest.raises(UnknownName, match="precision named 'fp8'"):
        bench_formats(pruned, [".mnn"], precisions=["fp8"])
    with pytest.raises(InvalidSetting, match="max_drop=1 compares the task's metric"):
        bench_formats(pruned, [".mnn"], max_drop=1)
    with pytest.raises(InvalidSetting, match="max_drop=nan allows any loss"):
        bench_formats(pruned, [".mnn"], max_drop=math.nan)


def test_every_format_says_who_runs_it() -> None:
    """A runtime, this process, an environment of its own, or the reason why it is left out."""
    from ltcompile.benchmark.formats import IN_PROCESS, SKIPPED

    for suffix, kind in formats.by_suffix().items():
        assert sum((hasattr(kind, "RUNTIME"), suffix in IN_PROCESS, suffix in SKIPPED, hasattr(kind, "check_structure"))) == 1, suffix
        assert not hasattr(kind, "VENV") or kind.VENV in _venvs.PACKAGES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "small"
    config = lt.SearchConfig(rounds=1, rate=0.5, controls=False)
    lt.find("lenet300", lt.load_data("digits", image_size=8), config, recipe=QUICK, folder=run)
    return run


def bench(ticket: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["bench", str(ticket), "--formats", ".safetensors,.cpp", "--seconds", "0.01", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.mark.slow
def test_a_ticket_on_the_command_line_and_its_page(folder: Path, tmp_path: Path) -> None:
    assert bench(folder / "ticket.pt", "--max-drop", "100")[0] == 0
    code, printed = bench(folder / "ticket.pt", "--max-drop", "-1", "--batch", "2")
    found = json.loads((folder / "formats.json").read_text())
    assert code == 1 and "lose more than -1: .safetensors fp32" in printed and found["batch"] == 2
    accuracy = json.loads((folder / "search.json").read_text())["rows"]
    assert found["reference"] in [row["test_score"] for row in accuracy] and found["rows"][0]["metric"] == pytest.approx(found["reference"])
    page = lt.report(folder).read_text()
    table = page[page.index('<section id="formats">') : page.index('<section id="verdict">')]
    assert f"{found['reference']:.2%}".replace("%", "\xa0%") in table and "PyTorch" in table
    measured, _, missing = table.partition("Not measured, and why")
    assert f"<td>{units.measured(1000 * found['rows'][0]['start_s'])}</td></tr>" in measured
    assert ".safetensors fp32" in measured and ".cpp" not in measured, "a table of figures alone"
    assert "the source of .so" in missing and ".safetensors" not in missing
    assert f"{found['rows'][0]['speedup']:.2f}\u00d7" in table and "of another ticket" not in page
    (tmp_path / "formats.json").write_text(json.dumps({**found, "ticket_checksum": None}))
    assert "Only its file formats were measured" in lt.report(tmp_path).read_text(), "a network without a ticket"
    (tmp_path / "formats.json").write_text(json.dumps({**found, "rows": [{}]}))
    with pytest.raises(InvalidFile, match=r"formats.json cannot be read as a result of `ltcompile bench --formats`.*rows"):
        lt.report(tmp_path)


def test_a_ticket_without_its_data(folder: Path, tmp_path: Path) -> None:
    ticket = lt.Ticket.load(folder / "ticket.pt")
    replace(ticket, data={**ticket.data, "name": "mnist"}).save(tmp_path / "ticket.pt")
    code, printed = bench(tmp_path / "ticket.pt", "--data-root", str(tmp_path))
    assert code == 0 and "no metric is measured" in printed and json.loads((tmp_path / "formats.json").read_text())["metric"] == ""
    with pytest.raises(InvalidData):
        bench(tmp_path / "ticket.pt", "--data-root", str(tmp_path), "--max-drop", "1")


@pytest.mark.slow
def test_few_images_measure_the_metric_and_refuse_int8_alone(pruned: lt.Pruned) -> None:
    """In each runtime that reads a file; the table says on how many images."""
    digits = lt.load_data("digits", image_size=8)
    few = replace(digits, **{name: getattr(digits, name).part(torch.arange(40)) for name in ("train", "val", "test")})
    found = bench_formats(pruned, [".onnx"], precisions=["fp32", "int8"], task=Classification(few), seconds=0.01)
    ours, tract, int8 = found.rows
    assert (ours.runtime, tract.runtime, tract.title, found.test_images) == ("onnxruntime", "tract", ".onnx fp32 in tract", 40)
    assert ours.metric == tract.metric == found.reference and tract.ms and tract.speedup and not tract.reason
    assert int8.ms is None and "of 100 that a decision needs" in int8.reason


def test_threads_without_formats(folder: Path) -> None:
    done = CliRunner().invoke(app, ["bench", str(folder / "ticket.pt"), "--threads", "2"])
    assert isinstance(done.exception, InvalidSetting) and "--threads and --max-drop belong to --formats" in str(done.exception)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--batch", "1", "--batch", "2"], "one batch size, not 1, 2"),
        (["--runtime", "mnn"], "without --runtime"),
        (["--data", "x.pt"], "labelled"),
    ],
)
def test_options_that_do_not_fit_formats(folder: Path, words: list[str], reason: str) -> None:
    with pytest.raises(InvalidSetting, match=reason):
        bench(folder / "ticket.pt", *words)
