"""The command line as a user meets it: whole runs, and bad input that ends in a message and exit code 2."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import onnx
import pytest
import torch
from commands import SERVER, Command, call, fork, refused

import ltcompile as lt

pytestmark = pytest.mark.slow

SCRIPT = Path(sys.executable).with_name("ltcompile")
QUICK = ("--model", "lenet5", "--image-size", 16, "--epochs", 4, "--rounds", 2, "--rate", 0.3, "--margin", 5)
LONG = ("find", *QUICK, "--epochs", 12, "--rounds", 1, "--no-controls", "--name", "t")


def wait_for_epochs(log: Path) -> None:
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.05)


def test_help_loads_no_heavy_package() -> None:
    code = "import sys\nfrom ltcompile.cli import app\nprint([m for m in ('torch','numpy','onnx','sklearn','plotly','jinja2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_console_script() -> None:
    """A process as a user starts it: help and mistakes at once. Forks stand for the longer commands below."""
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "Search for the smallest winning ticket" in done.stdout
    assert subprocess.run([SCRIPT, "fnid"], capture_output=True, check=False).returncode == 2


def report(connection: Connection) -> None:
    connection.send(
        (len(os.listdir("/proc/self/task")), torch.cuda._is_in_bad_fork(), {"torch", "onnxruntime", "openvino"} & set(sys.modules))
    )


def test_commands_are_forked_with_nothing_that_a_fork_breaks() -> None:
    """No second thread, no CUDA, no runtime that has begun; but what takes seconds to import."""
    here, there = SERVER.Pipe(duplex=False)
    process = fork(report, there)
    assert here.recv() == (1, False, {"torch"})
    process.join()


@pytest.mark.parametrize(
    "command",
    [
        "find",
        "plan",
        "profile",
        "squeeze",
        "shrink",
        "lower",
        "bench",
        "sweep",
        "study",
        "report",
        "verify",
        "show",
        "inspect",
        "doctor",
        "worker",
        "status",
    ],
)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = call(command, "--help")
    assert done.returncode == 0 and "Example" in done.stdout and f"ltcompile {command}" in done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder after find and shrink."""
    cwd = tmp_path_factory.mktemp("work")
    done = call("find", *QUICK, "--name", "t", "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["ticket"] == "runs/t/ticket.pt" and printed["verdict"]["rule"] and len(printed["rows"]) == 5
    done = call("shrink", "runs/t/ticket.pt", "-o", "runs/t/small.onnx", cwd=cwd)
    assert done.returncode == 0 and "cut = masked" in done.stdout, done.stderr
    return cwd


def test_tensorboard_logs_on_request(tmp_path: Path) -> None:
    command = (
        "find",
        "--model",
        "lenet5",
        "--image-size",
        16,
        "--epochs",
        1,
        "--rounds",
        1,
        "--no-controls",
        "--name",
        "t",
        "--tensorboard",
    )
    done = call(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs/t/tensorboard").glob("events*"))
    assert (tmp_path / "runs/t/ticket.pt").exists(), "a log folder made first is not taken for a run"


def test_show(folder: Path) -> None:
    assert "lenet5 for classification of digits" in call("show", folder / "runs/t/ticket.pt").stdout
    printed = json.loads(call("show", folder / "runs/t/ticket.pt", "--json").stdout)
    assert printed["checksum"] == lt.Ticket.load(folder / "runs/t/ticket.pt").checksum and "weights" not in printed


@pytest.mark.parametrize("target", ["ticket.pt", "small.onnx"])
def test_bench(folder: Path, target: str) -> None:
    run = folder / "runs/t"
    words = ("--runtime", "onnxruntime", "--runtime", "eager", "--batch", 1, "--batch", 3, "--seconds", 0.05, "--json")
    done = call("bench", run / target, *words)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {(r["subject"], r["runtime"], r["batch"]) for r in rows} == {
        (s, b, n) for s in ("dense", "small") for b in ("onnxruntime", "eager") for n in (1, 3)
    }
    ticket = lt.Ticket.load(run / "ticket.pt")
    dense = next(r for r in ticket.history if r.arm == "dense")
    for row in rows:
        expected = dense if row["subject"] == "dense" else ticket.row
        assert row["accuracy"] == pytest.approx(expected.test_score, abs=0.005), "the file answers as the network did"
        assert (row["speedup"] is None) == (row["subject"] == "dense") and row["max_error"] < 1e-3
    written = json.loads((run / "bench.json").read_text())
    assert written["rows"] == rows and written["images"] == "test set" and (run / "bench.csv").read_text().count("\n") == len(rows) + 1


def test_bench_without_the_run_folder(folder: Path, tmp_path: Path) -> None:
    """A file that has left its run: its dense network is rebuilt from the file's metadata, and has a speed but no accuracy."""
    (tmp_path / "small.onnx").write_bytes((folder / "runs/t/small.onnx").read_bytes())
    words = ("--runtime", "onnxruntime", "--batch", 1, "--seconds", 0.05, "--json")
    done = call("bench", tmp_path / "small.onnx", *words)
    assert done.returncode == 0, done.stderr
    rows = {r["subject"]: r for r in json.loads(done.stdout)["rows"]}
    assert rows["dense"]["accuracy"] is None and rows["small"]["accuracy"] > 0.5


@pytest.mark.parametrize("option", [("--precision", "fp16"), ("--calibrate", "digits")])
def test_files_that_shrink_changed_on_purpose_are_their_own_reference(folder: Path, option: tuple[str, ...]) -> None:
    run = folder / "runs/t"
    assert call("shrink", run / "ticket.pt", "-o", run / "other.onnx", *option).returncode == 0
    words = ("--runtime", "onnxruntime", "--batch", 1, "--seconds", 0.05, "-o", folder / "other.json", "--json")
    done = call("bench", run / "other.onnx", *words)
    assert done.returncode == 0 and json.loads(done.stdout)["rows"][1]["accuracy"] > 0.5, done.stderr


def test_lower(folder: Path) -> None:
    printed = json.loads(call("lower", folder / "runs/t/ticket.pt", "--json").stdout)
    assert printed["left"] < len(printed["nodes"]) and max(printed["errors"].values()) < 1e-5
    done = call("lower", folder / "runs/t/ticket.pt", "--explain")
    assert done.returncode == 0 and "what became of it" in done.stdout and "fused conv2d" in done.stdout, done.stderr


def test_report(folder: Path) -> None:
    done = call("report", folder / "runs/t", "-o", folder / "page.html")
    assert done.returncode == 0, done.stderr
    assert "lenet5" in (folder / "page.html").read_text() and json.loads((folder / "page.json").read_text())


def test_doctor() -> None:
    printed = json.loads(call("doctor", "--json").stdout)
    assert printed["runtimes"]["cpu"]["eager"] is None and printed["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "works" in call("doctor").stdout


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_resumes(tmp_path: Path, sent: signal.Signals) -> None:
    log, command = tmp_path / "runs/t/seed0/dense-0.jsonl", Command(*LONG, cwd=tmp_path)
    wait_for_epochs(log)
    command.send(sent)
    stopped = command.wait(60)
    assert stopped.returncode == 128 + sent and "--resume" in stopped.stderr and "Traceback" not in stopped.stderr
    there = log.read_text().splitlines()
    refused("find", *QUICK, "--name", "t", "--resume", says="other settings", cwd=tmp_path)
    done = call(*LONG, "--resume", cwd=tmp_path)
    assert done.returncode == 0 and log.read_text().splitlines()[: len(there) - 1] == there[:-1]


class TestBadInput:
    """Each with what, where and what to do now; exit code 2; no traceback."""

    def test_unknown_names(self, tmp_path: Path) -> None:
        refused("find", "--model", "vgg61", says="Did you mean vgg19 or vgg16", cwd=tmp_path)
        refused("find", "--model", "torchvision:resnet51", says="Did you mean", cwd=tmp_path)
        refused("find", "--model", "no.such.module:make", says="PYTHONPATH", cwd=tmp_path)
        refused("find", "--data", "imagenet", says="Known: cifar10", cwd=tmp_path)
        refused("find", "--criterion", "l3", says="Known: activation, apoz, bn", cwd=tmp_path)
        refused("find", "--rewind", "back", says="finetune", cwd=tmp_path)
        assert not (tmp_path / "runs").exists()

    def test_settings(self, tmp_path: Path) -> None:
        refused("find", "--rate", "1.5", says="between 0 and 1", cwd=tmp_path)
        refused("find", "--model", "lenet5", "--rounds", "30", "--rate", "0.5", says="empty a layer", cwd=tmp_path)
        refused("find", "--rounds", "many", says="valid integer", cwd=tmp_path)
        refused("find", "--device", "tpu", says="cpu or cuda", cwd=tmp_path)
        refused("find", "--data", "cifar10", says="--download", cwd=tmp_path)
        refused("find", "--epochs", "0", says="'--epochs'", cwd=tmp_path)
        refused("find", "--metric", "mAP", says="--metric belongs to a training script of your own; add --train", cwd=tmp_path)
        plan = ("plan", "--model", "lenet5")
        refused(
            *plan, "--on", "cpu", "--target-latency", "5", says="takes a time with its unit", cwd=tmp_path
        )  # before a profile takes minutes
        refused(*plan, "--example", "0x3x32x32", says="0x3x32x32 must have 1 to", cwd=tmp_path)
        refused("plan", "--model", "os:path", "--example", "1x3x8x8", says="is a module, not a function or class", cwd=tmp_path)
        refused("plan", "--model", "platform:sytem", "--example", "1x3x8x8", says="Did you mean system", cwd=tmp_path)
        refused("shrink", "--model", "platform:system", says="--model platform:system needs the shapes of its inputs", cwd=tmp_path)
        for command in (("bench", "none.onnx"), ("sweep", "none"), ("doctor", "--install", "none")):
            done = call(*command, cwd=tmp_path)
            assert done.returncode == 2 and not done.stdout, "no heads of a table, nor what is not done"
        done = call("find", "--model", "lenet5", "--weights", "none.pth", cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: there is no file of weights"), "and no table is begun"

    def test_tickets(self, folder: Path, tmp_path: Path) -> None:
        whole = (folder / "runs/t/ticket.pt").read_bytes()
        (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "text.pt").write_text("hello")
        for bad in ("half.pt", "text.pt", "none.pt"):
            for command in ("shrink", "show", "bench"):
                refused(command, tmp_path / bad, says="ticket")
        refused("shrink", folder / "runs/t/ticket.pt", "--model", "vgg16", says="not for 'vgg16'")

    def test_other_classes(self, folder: Path, tmp_path: Path) -> None:
        from pictures import write_folder

        data = f"imagefolder:{write_folder(tmp_path / 'images')}"
        refused("bench", folder / "runs/t/ticket.pt", "--data", data, says="channels")
        refused("shrink", folder / "runs/t/ticket.pt", "-o", tmp_path / "s.onnx", "--calibrate", data, says="channels")

    def test_places_that_cannot_be_written(self, folder: Path) -> None:
        for place in ("/proc/none/small.onnx", folder / "runs/t/ticket.pt/small.onnx"):
            refused("shrink", folder / "runs/t/ticket.pt", "-o", place, says="cannot write")
        refused("report", folder / "runs/t", "-o", "/proc/none/page.html", says="cannot write")

    def test_onnx_files_that_are_not_ours(self, tmp_path: Path) -> None:
        graph = onnx.helper.make_graph([], "empty", [], [])
        onnx.save(onnx.helper.make_model(graph), str(tmp_path / "other.onnx"))
        (tmp_path / "broken.onnx").write_bytes(b"no protobuf at all")
        refused("bench", tmp_path / "other.onnx", says="was not made by")
        refused("bench", tmp_path / "broken.onnx", says="cannot be read as ONNX")
        refused("bench", tmp_path / "none.onnx", says="there is no ONNX file")

    def test_backends_and_runs(self, folder: Path, tmp_path: Path) -> None:
        refused("bench", folder / "runs/t/ticket.pt", "--runtime", "onnx", says="onnxruntime")
        refused("bench", folder / "runs/t/ticket.pt", "--against", "sparse", says="dense")
        refused("report", tmp_path, says="ltcompile find")

    def test_a_factory_that_fails(self, tmp_path: Path) -> None:
        (tmp_path / "buggy.py").write_text("def make():\n    raise ZeroDivisionError('oops')\n")
        done = call("find", "--model", "buggy:make", cwd=tmp_path, PYTHONPATH=str(tmp_path))
        assert done.returncode == 2 and "ZeroDivisionError: oops" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("before", "threads"), [(None, "3"), ("5", "5")])
def test_pytorch_starts_no_more_threads_than_a_quota_pays_for(monkeypatch: pytest.MonkeyPatch, before: str | None, threads: str) -> None:
    from ltcompile import processors
    from ltcompile.cli import main

    monkeypatch.setattr(processors, "quota", lambda: 2.5)
    monkeypatch.setattr(processors, "cpuset", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", before or "")
    if before is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(sys, "argv", ["ltcompile", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ["OMP_NUM_THREADS"] == threads


def test_a_bug_of_ours_is_reported_as_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ltcompile.cli import doctor, main

    def fail() -> None:
        raise AssertionError("impossible")

    monkeypatch.setattr(doctor, "examine", fail)
    monkeypatch.setattr(sys, "argv", ["ltcompile", "doctor"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1 and "this is a bug in ltcompile: AssertionError: impossible" in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 120])
def test_progress_fits_the_terminal(width: int) -> None:
    from rich.console import Console

    from ltcompile.cli._terminal import progress

    console = Console(width=width, file=io.StringIO(), record=True)
    bar = progress(console, "epochs")
    bar.add_task("seed 1 dense_budget 1  val 99.78%", total=1234, completed=684)
    console.print(bar)
    (line,) = console.export_text().splitlines()
    assert len(line) <= width and "684/1234 epochs" in line and "left -:--:--" in line and "…" not in line
