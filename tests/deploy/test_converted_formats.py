"""Files in the formats of other runtimes: read back and compared, or refused with what is missing; converters are programs that may fail."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from kinds import Two
from onnx import TensorProto, helper, load, save
from torch import Tensor, nn
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile import runtimes
from ltcompile.cli import app
from ltcompile.core.deployment import Deployment
from ltcompile.deploy import formats
from ltcompile.errors import Disagreement, InvalidFile, InvalidModel, InvalidSetting, Unavailable, UnknownName
from ltcompile.runtimes import Subject, _convert, _venvs, load_apart, mnn

LIGHT = [suffix for suffix, kind in formats.by_suffix().items() if hasattr(kind, "convert")]
HEAVY = [suffix for suffix, kind in formats.by_suffix().items() if hasattr(kind, "VENV")]
CONVERTED = {suffix: formats.by_suffix()[suffix] for suffix in (*LIGHT, *HEAVY)}


@pytest.fixture(scope="module")
def pruned() -> lt.Pruned:
    return lt.Pruned(Two().eval(), (torch.randn(2, 3, 9, 9), torch.randn(2, 5)), preprocessing={"mean": "[0.5]"})


def need(kind: ModuleType) -> None:
    if reason := formats.unavailable(kind):
        pytest.skip(reason)


def test_there_are_formats() -> None:
    assert {".xml", ".mnn", ".param"} == set(LIGHT) and {".tflite", ".pte", ".mlpackage"} == set(HEAVY)
    assert all(runtimes.unavailable(CONVERTED[suffix].RUNTIME, "cpu") is None for suffix in LIGHT), "dev installs these"


@pytest.mark.parametrize("suffix", [s if s == ".xml" else pytest.param(s, marks=pytest.mark.slow) for s in CONVERTED])
def test_a_file_is_read_back_by_its_own_runtime(suffix: str, pruned: lt.Pruned, tmp_path: Path) -> None:
    """In half precision where the format holds it."""
    need(CONVERTED[suffix])
    precision = "fp16" if "fp16" in getattr(CONVERTED[suffix], "PRECISIONS", ("fp16",)) else "fp32"
    done = lt.shrink(pruned, tmp_path / f"small{suffix}", precision=precision)  # type: ignore[arg-type]
    record = json.loads((tmp_path / "small.json").read_text())
    files = formats.files(done.path)
    assert record["bytes"] == sum(path.stat().st_size for path in files) and all(path.exists() for path in files)
    if not hasattr(CONVERTED[suffix], "RUNTIME"):
        assert "macOS" in record["not_run"] and record["onnx_error"] is None
        return
    assert record["onnx_error"] <= record["tolerance"] <= (1e-4 if precision == "fp32" else 0.1)
    assert precision == "fp32" or record["onnx_error"] > 1e-6, "nothing was rounded"
    session = load_apart(Subject("small", file=done.path), Deployment("cpu", CONVERTED[suffix].RUNTIME, 3))
    image, extra = torch.randn(3, 3, 9, 9), torch.randn(3, 5)
    named = {"image": image.numpy(), "extra": extra.numpy()}
    found = session.run(named if suffix in (".xml", ".mnn") else list(named.values()))
    with torch.no_grad():
        expected = pruned.small(image, extra)
    for value in expected.values():
        assert min(float(np.abs(other - value.numpy()).max()) for other in found.values() if other.shape == value.shape) < 2e-2


@pytest.mark.slow
def test_openvino_keeps_the_metadata_and_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    small = lt.Pruned(network, torch.randn(2, 3, 6, 6), preprocessing={"mean": "[0.5]"})
    done = lt.shrink(small, tmp_path / "small.xml", precision="int8", calibrate=[torch.randn(200, 3, 6, 6)])
    text = done.path.read_text()
    assert "FakeQuantize" in text or 'element_type="i8"' in text or 'type="i8"' in text
    assert 'value="[0.5]"' in text and str(small.checksum) in text
    with pytest.raises(InvalidSetting, match=r"int8 output must be \.onnx or \.xml or \.mnn or \.cpp or \.so, not .*small\.param"):
        lt.shrink(small, tmp_path / "small.param", precision="int8", calibrate=[torch.randn(200, 3, 6, 6)])


class TestOwnInt8:
    """MNN quantises by itself; the inputs and the judge are ours."""

    @pytest.fixture
    def small(self) -> lt.Pruned:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 16, 3), nn.ReLU(), nn.Conv2d(16, 5, 2)).eval()
        return lt.Pruned(network, torch.randn(2, 3, 8, 8), input_names=("image",), output_names=("map",))

    @pytest.fixture
    def calibrate(self) -> list[Tensor]:
        return [torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))]

    @pytest.mark.slow
    def test_it_answers_nearly_what_the_network_does(self, small: lt.Pruned, calibrate: list[Tensor], tmp_path: Path) -> None:
        need(CONVERTED[".mnn"])
        done = lt.shrink(small, tmp_path / "small.mnn", precision="int8", calibrate=calibrate)
        int8 = done.record["int8"]
        assert int8["quantizer"] == "mnn" and int8["ranges"] in mnn.RANGES and 1e-5 < int8["error"]["rms"] < 0.05
        assert done.record["onnx_error"] == int8["error"]["max"] <= done.record["tolerance"]
        assert done.record["bytes"] < lt.shrink(small, tmp_path / "float.mnn").record["bytes"]
        images = torch.randn(3, 3, 8, 8)
        found = load_apart(Subject("small", file=done.path), Deployment("cpu", "mnn", 3)).run(images.numpy())
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(next(iter(found.values()))), small.small(images), rtol=0, atol=0.05)

    @pytest.mark.slow
    @pytest.mark.parametrize("keep", [True, False])
    def test_networks_that_pool_globally_get_both_kinds_of_ranges(self, calibrate: list[Tensor], tmp_path: Path, keep: bool) -> None:
        """MNN's KL ends at a mean; a pool computes the same."""
        need(CONVERTED[".mnn"])

        class Pools(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.conv, self.linear = nn.Conv2d(3, 9, 3), nn.Linear(9, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.linear(torch.relu(self.conv(x)).mean((2, 3), keepdim=keep).flatten(1))

        done = lt.shrink(lt.Pruned(Pools().eval(), torch.randn(2, 3, 8, 8)), tmp_path / "small.mnn", precision="int8", calibrate=calibrate)
        assert {one["ranges"] for one in done.record["int8"]["tried"]} == set(mnn.RANGES) and done.record["int8"]["failed"] == []

    @pytest.mark.slow
    def test_what_loses_too_much_is_refused(self, small: lt.Pruned, calibrate: list[Tensor], tmp_path: Path) -> None:
        need(CONVERTED[".mnn"])
        scores = iter([1.0, 0.25, 0.25])
        with pytest.raises(Disagreement, match=r"int8 by mnn's quantiser reaches 0\.25 by the metric, 0\.75 units below fp32 \(0\.5 are"):
            lt.shrink(small, tmp_path / "small.mnn", precision="int8", calibrate=calibrate, metric=lambda _: next(scores))
        assert not (tmp_path / "small.mnn").exists()

    @pytest.mark.slow
    def test_a_quantiser_that_fails_gives_its_reason(
        self, small: lt.Pruned, calibrate: list[Tensor], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        need(CONVERTED[".mnn"])
        monkeypatch.setattr(mnn, "QUANTIZER", "import os; os.abort()")
        with pytest.raises(
            InvalidModel, match=r"mnn cannot quantise this network: KL\.mnn was not made: it ended with signal 6: .*write \.onnx"
        ):
            lt.shrink(small, tmp_path / "small.mnn", precision="int8", calibrate=calibrate)
        with pytest.raises(InvalidModel, match=r"'a/b' names none; give input_names="):
            lt.shrink(replace(small, input_names=("a/b",)), tmp_path / "small.mnn", precision="int8", calibrate=calibrate)
        with pytest.raises(InvalidSetting, match="finetune_epochs trains for ltcompile's own int8"):
            lt.shrink(small, tmp_path / "small.mnn", precision="int8", calibrate=calibrate, finetune_epochs=1)


@pytest.mark.parametrize("suffix", LIGHT)
def test_an_operator_that_a_format_lacks_is_named(suffix: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its layer, by ncnn's name for it or the ONNX file's; nothing is left where the command runs."""
    need(CONVERTED[suffix])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 4, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Bernoulli", ["x"], ["y"], name="odd", seed=1.0)], "g", ends[:1], ends[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "odd.onnx")
    with pytest.raises(Unavailable, match=r"Bernoulli.*layer '(odd|Bernoulli_0)'"):
        CONVERTED[suffix].convert(tmp_path / "odd.onnx", tmp_path / f"odd{suffix}", "fp32")
    assert not (tmp_path / f"odd{suffix}").exists() and not list(Path().iterdir())


@pytest.mark.slow
def test_an_onnx_file_takes_another_opset(pruned: lt.Pruned, tmp_path: Path) -> None:
    done = lt.shrink(pruned, tmp_path / "small.onnx", opset=17)
    model = load(done.path)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 17)] and done.record["onnx_error"] <= 1e-4
    assert {"mean", "producer"} <= {text.key for text in model.metadata_props}
    with pytest.raises(InvalidModel, match="cannot be written in opset 3"):
        lt.shrink(pruned, tmp_path / "small.onnx", opset=3)
    with pytest.raises(InvalidSetting, match=r"opset=17 is of \.onnx files"):
        lt.shrink(pruned, tmp_path / "small.mnn", opset=17)


def test_files_of_another_format_are_not_written_over(pruned: lt.Pruned, tmp_path: Path) -> None:
    """Several formats have a .bin file next to the one that is named; the same output is written again."""
    for _ in range(2):
        lt.shrink(pruned, tmp_path / "small.xml")
    before = (tmp_path / "small.bin").read_bytes()
    for suffix in (".param", ".so", ".cpp"):
        with pytest.raises(InvalidFile, match=r"small\.bin belongs to .*small\.xml, and small\..* needs a file of that name; name another"):
            lt.shrink(pruned, tmp_path / f"small{suffix}")
    assert (tmp_path / "small.bin").read_bytes() == before
    lt.shrink(pruned, tmp_path / "small.mnn")  # which has none


def test_shapes_that_vary_are_refused(pruned: lt.Pruned, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="have fixed shapes"):
        lt.shrink(pruned, tmp_path / "small.mnn", dynamic=("batch", "image.2"))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mnn"])
def test_a_runtime_that_answers_wrongly_is_refused(suffix: str, pruned: lt.Pruned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of another network lies there when it is read back."""
    kind = CONVERTED[suffix]
    need(kind)
    other = lt.Pruned(Two().eval(), pruned.example)
    with torch.no_grad():
        other.small.linear.bias[3] += 1.0
    honest = kind.write
    monkeypatch.setattr(kind, "write", lambda network, _, job: honest(other.small, other, job))
    with pytest.raises(Disagreement, match="output 'logits': outputs are off by"):
        lt.shrink(pruned, tmp_path / f"small{suffix}")


@pytest.mark.parametrize("suffix", LIGHT)
def test_a_converter_that_crashes_is_a_reason(suffix: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None runs in this process; its last line is in the error, and its log is kept."""
    need(kind := CONVERTED[suffix])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 4, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "net.onnx")
    program = subprocess.run

    def crash(command: list[str], **settings: Any) -> Any:
        return program([sys.executable, "-c", "import os, sys; print('no such kernel', flush=True); os.abort()"], **settings)

    monkeypatch.setattr(_convert.subprocess, "run", crash)
    with pytest.raises(Unavailable, match=r"net\.\w+ was not made: it ended with signal 6: no such kernel; its log is"):
        kind.convert(tmp_path / "net.onnx", tmp_path / f"net{suffix}", "fp32")
    assert "no such kernel" in (cache / "logs" / f"net{suffix}.log").read_text() and not (tmp_path / f"net{suffix}").exists()


def test_a_converter_that_hangs_is_stopped(cache: Path) -> None:
    with pytest.raises(Unavailable, match=r"x was not made: it did not end within 0\.2 s"):
        _convert.run([sys.executable, "-c", "import time; time.sleep(60)"], "x", timeout_s=0.2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "ltcompile"


def fake(cache: Path, name: str, code: str) -> None:
    """An environment whose interpreter runs `code`, with what it is called with as `sys.argv[1:]`."""
    there = cache / "venvs" / name
    (there / "bin").mkdir(parents=True)
    program = there / "bin" / "python"
    program.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
    program.chmod(0o755)
    (there / "installed.json").write_text("{}")


class TestConverters:
    """Heavy ones run in environments of their own, as any program that is handed files."""

    @pytest.mark.parametrize("name", _venvs.PACKAGES)
    def test_nothing_is_installed_without_a_request(self, name: str, cache: Path, pruned: lt.Pruned, tmp_path: Path) -> None:
        suffix = next(suffix for suffix, kind in CONVERTED.items() if getattr(kind, "VENV", "") == name)
        with pytest.raises(Unavailable, match=f"cannot be written here: run `ltcompile doctor --install {name}` first"):
            lt.shrink(pruned, tmp_path / f"small{suffix}")
        assert not cache.exists()

    def test_a_failure_gives_its_last_line_and_keeps_the_log(self, cache: Path, pruned: lt.Pruned, tmp_path: Path) -> None:
        fake(cache, "executorch", "print('lowering'); print('KeyError: aten.foo of layer conv.3', file=sys.stderr); sys.exit(3)")
        with pytest.raises(
            InvalidModel, match=r"small\.pte was not made: it ended with code 3: KeyError: aten\.foo of layer conv\.3; its log"
        ):
            lt.shrink(pruned, tmp_path / "small.pte")
        assert "lowering" in (cache / "logs" / "small.pte.log").read_text() and not (tmp_path / "small.pte").exists()

    def test_a_converter_that_writes_nothing(self, cache: Path, pruned: lt.Pruned, tmp_path: Path) -> None:
        fake(cache, "litert", "print('skipped'); print('done')")
        with pytest.raises(InvalidModel, match=r"small\.tflite was not made: litert's converter writes no file: done; its log"):
            lt.shrink(pruned, tmp_path / "small.tflite")
        assert "skipped" in (cache / "logs" / "small.tflite.log").read_text()

    def test_a_package_is_checked_for_its_structure(self, cache: Path, pruned: lt.Pruned, tmp_path: Path) -> None:
        """It is written next to its place, and moved there; a second one replaces it."""
        code = """
import json, pathlib
if 'get_spec' in sys.argv[3]:
    print(json.dumps({"inputs": SHAPES, "outputs": OUTPUTS, "kind": "mlProgram"}))
else:
    names = json.loads(sys.argv[7])
    assert names == {"inputs": [["image", "float32", [1, 3, 9, 9]], ["extra", "float32", [1, 5]]], "outputs": ["logits", "features"]}, names
    out = pathlib.Path(sys.argv[5])
    (out / "Data").mkdir(parents=True)
    (out / "Data" / "weight.bin").write_bytes(bytes(1000))
"""
        right = {"SHAPES": '{"image": [1, 3, 9, 9], "extra": [1, 5]}', "OUTPUTS": '["logits", "features"]'}

        def package(**wrong: str) -> None:
            shutil.rmtree(cache / "venvs", ignore_errors=True)
            fake(cache, "coreml", functools.reduce(lambda text, pair: text.replace(*pair), {**right, **wrong}.items(), code))

        package()
        for _ in range(2):
            done = lt.shrink(pruned, tmp_path / "small.mlpackage")
            assert done.record["bytes"] == 1000 and "macOS" in done.record["not_run"] and done.path.is_dir()
        torch.save(pruned.small.state_dict(), weights := tmp_path / "two.pth")
        words = ["shrink", "--model", "kinds:Two", "--weights", str(weights), "--example", "image=1x3x9x9,extra=1x5", "-o", str(done.path)]
        assert (again := CliRunner().invoke(app, words)).exit_code == 0 and "not run here: Core ML runs on macOS" in again.output
        for wrong in ({"SHAPES": '{"image": [1, 3, 8, 8], "extra": [1, 5]}'}, {"OUTPUTS": '["logits"]'}):
            package(**wrong)
            with pytest.raises(Disagreement, match="is not the network"):
                lt.shrink(pruned, tmp_path / "small.mlpackage")

    def test_an_install_says_what_failed(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UnknownName, match="format to install named 'tflite'"):
            _venvs.install("tflite")
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"total": 10, "free": 1})())
        with pytest.raises(InvalidFile, match=r"the environment of coreml will take about .* free space there"):
            _venvs.install("coreml")

    def test_no_network_is_a_reason(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[list[str]] = []

        def offline(command: list[Any], *_: Any, **rest: Any) -> Any:
            calls.append([str(part) for part in command])
            if "pip" in calls[-1]:
                rest["stdout"].write(b"ERROR: No matching distribution found for coremltools\n")
            return type("Done", (), {"returncode": int("pip" in calls[-1])})()

        monkeypatch.setattr(_venvs, "check_room", lambda *_: None)
        monkeypatch.setattr(_convert.subprocess, "run", offline)
        with pytest.raises(Unavailable, match=r"No matching distribution found for coremltools; its log is .*; check the network"):
            _venvs.install("coreml")
        assert [("venv" in c, "pip" in c) for c in calls] == [(True, False), (False, True)] and _venvs.python("coreml") is None
        assert (cache / "logs" / "install-coreml.log").is_file()
