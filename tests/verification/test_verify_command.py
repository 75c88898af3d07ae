"""`ltcompile verify`: exit codes and messages, with torch out of reach."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from claims import QUICK, images_file, network, report, timing
from readers import spoil_onnx

from ltcompile.cli import main
from ltcompile.core.deployment import Deployment
from ltcompile.core.records import cpu_name
from ltcompile.errors import LtcompileError
from ltcompile.verification import verify

HEAVY = ("torch", "torchvision", "triton", "onnx", "onnxscript", "scipy")


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`ltcompile verify small.onnx WORDS` in `folder`: exit code, output and errors."""
    monkeypatch.chdir(folder)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ltcompile", "verify", "small.onnx", "--seconds", str(QUICK), *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert isinstance(stop.value.code, int)
        return stop.value.code, *capsys.readouterr()

    return run


def test_exit_codes(folder: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    report(folder, timing())
    code, reported, errors = call("--dense", "dense.onnx", "-o", "out/verified.json")
    assert code == 0 and "confirmed" in reported, (reported, errors)
    written = json.loads((folder / "out/verified.json").read_text())
    assert written["outcome"] == "confirmed" and {"python", "numpy", "onnxruntime"} <= set(written["versions"])
    assert written["machine"]["cpu"] == cpu_name() and written["date"] and len(written["sha256"]) == 64
    report(folder, timing(speedup=1e6))
    assert call("--dense", "dense.onnx")[0] == 1
    monkeypatch.setattr("ltcompile.verification.checks.busy_share", lambda: 0.9)
    code, reported, errors = call("--dense", "dense.onnx", "--json")
    assert code == 3 and json.loads(reported)["outcome"] == "not comparable" and "do not quote these times" in errors, (
        "being busy refutes nothing"
    )
    assert json.loads(reported)["busy_share"] == 0.9
    assert "other work took 90%" in json.loads(reported)["checks"][-1]["reason"]


def test_a_file_that_is_only_the_right_one_is_not_confirmed(folder: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    report(folder, timing(accuracy=0.4), provenance=[])
    code, reported, errors = call()
    assert code == 3 and "--dense" in errors and "2 not comparable" in reported and "3 confirmed" in reported
    code, reported, errors = call("--data", images_file(folder, 0.9))
    assert code == 0, (reported, errors)
    code, reported, errors = call("--data", "test.npz", "--require", "accuracy, speedup", "--json")
    assert code == 3 and json.loads(reported)["missing"] == ["speedup"] and "required, and not confirmed: speedup" in errors
    code, reported, errors = call("--data", "test.npz", "--require", "accuracy,latency,speedup", "--dense", "dense.onnx", "--json")
    assert code == 3 and json.loads(reported)["missing"] == ["latency"], "it was measured on a machine without a name"
    report(folder, timing(accuracy=0.4))
    code, reported, errors = call("--data", "test.npz", "--require", "accuracy,latency,speedup", "--dense", "dense.onnx", "--json")
    assert code == 0 and json.loads(reported)["outcome"] == "confirmed", (reported, errors)
    assert call("--data", images_file(folder, 0.2), "--require", "speedup", "--dense", "dense.onnx")[0] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--require", "speed"), "speedup"),
        (("--claims", "none.json"), "none.json"),
        (("--claims", "small.onnx"), "small.onnx"),
        (("--claims", "other.json"), "take the claims that were made with this file"),
        (("--dense", "report.json"), "report.json"),
        (("--data", "report.json"), "report.json"),
        (("--on", "cpu:onyx"), "onnxruntime"),
        (("--on", "cpu:onnxruntime:b7"), "it was timed on"),
        (("-o", "/proc/none/x.json"), "cannot write"),
    ],
)
def test_wrong_words_end_with_2(folder: Path, call: Callable[..., tuple[int, str, str]], words: tuple[str, ...], says: str) -> None:
    report(folder, timing(), ticket={"seed": 0, "level": 1, "won": False, "checksum": "dead" * 16}).rename(folder / "other.json")
    report(folder, timing())
    code, _, errors = call(*words)
    assert code == 2 and says in errors and "error: " in errors and "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("installed", [pytest.param(True, marks=pytest.mark.slow), False])
def test_torch_is_not_needed(folder: Path, installed: bool) -> None:
    """In a process of its own: what is heavy is not imported where it is there, and not missed where it is not."""
    report(folder, timing(accuracy=0.9))
    code = f"""
import importlib.abc, sys
HEAVY = {HEAVY}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ModuleNotFoundError(name)
if not {installed}:
    sys.meta_path.insert(0, Absent())
sys.argv = ["ltcompile", "verify", "small.onnx", "--dense", "dense.onnx", "--data", "test.npz", "--seconds", "0", "-o", "verified.json"]
import ltcompile.cli
try:
    ltcompile.cli.main()
except SystemExit as stop:
    print("ended with", stop.code)
print([name for name in HEAVY if name in sys.modules])
"""
    images_file(folder, 1.0)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["ended with 0", "[]"], (done.stdout, done.stderr)
    assert (folder / "verified.json").is_file()


def test_every_error_is_one_of_ours(folder: Path) -> None:
    """Whatever is in the network's file: it is checked or refused."""
    report(folder, timing(), provenance=[])
    whole = network(2)
    for seed in range(60):
        (folder / "small.onnx").write_bytes(spoil_onnx(whole, random.Random(seed)))
        try:
            verify(folder / "small.onnx", seconds=0)
        except LtcompileError as error:
            assert str(error)


def test_the_workflow(tmp_path: Path) -> None:
    """It runs the command with options that there are, on every push of a model."""
    text = (Path(__file__).parents[2] / "examples/github_actions/verify.yml").read_text()
    command = " ".join(text.split("ltcompile verify", 1)[1].split("\n\n")[0].split())
    for option in ("--claims", "--dense", "--on", "--require", "-o"):
        assert f" {option} " in command
    Deployment.parse(command.split("--on ")[1].split()[0])
    yaml = pytest.importorskip("yaml")
    value = yaml.safe_load(text)
    (job,) = value["jobs"].values()
    assert value[True]["push"]["paths"] and any("ltcompile verify" in step.get("run", "") for step in job["steps"])
