"""Engines on a CPU: the fastest correct candidate is taken, threads get their own answers, and files are data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engine_support import Recorded, only, pictures, placed, small, wrong_answers

import ltcompile as lt
from ltcompile import runtimes
from ltcompile.core.deployment import Deployment
from ltcompile.engine import cpu, file, host
from ltcompile.engine.executable import Executable
from ltcompile.engine.gpu import Graph
from ltcompile.errors import Disagreement, EngineMismatch, InvalidData, InvalidFile, InvalidModel, InvalidSetting, Unavailable
from ltcompile.numerics import TOLERANCES
from ltcompile.runtimes import Subject, _ort


@pytest.mark.slow
class TestOnCpu:
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_all_candidates_are_timed_and_the_fastest_taken(self, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "SCREEN_S", 0.0)
        monkeypatch.setattr(host, "FINAL_S", 0.0)
        messages: list[str] = []
        engine = lt.compile(small(), pictures(128), batch=[3], precision=precision, tune_seconds=0, on_progress=messages.append)
        decision = engine.decisions[3]
        runtimes = {who.split(",")[0] for who in [*decision.ms, *decision.refused]}
        assert runtimes == {"onnxruntime", "openvino", "compile", "generated C++"} and {decision.by, decision.runner_up} <= set(decision.ms)
        assert decision.lead is not None and (decision.ms[decision.by] <= decision.ms[decision.runner_up] or decision.tie)
        assert (0 if precision == "fp32" else 1e-3) < decision.max_error <= TOLERANCES[precision] and any(
            "timing" in line for line in messages
        )
        assert ("compile" in decision.refused) == (precision == "int8")

    def test_int8_is_refused_where_it_costs_too_much_or_is_unknown(self, quick: None) -> None:
        with pytest.raises(InvalidData, match=r"99 images do not show how much: pass 100 real ones or more"):
            lt.compile(small(), pictures(99), batch=[1], precision="int8")
        with pytest.raises(InvalidSetting, match="max_drop=101: it is the per cent"):
            lt.compile(small(), pictures(100), batch=[1], precision="int8", max_drop=101)
        lopsided = small()
        with torch.no_grad():  # one range for all: what is small among the activations is lost
            lopsided.a.weight[0], lopsided.a.bias[0] = 1e4, 1e4
            lopsided.b.weight[:, 0] = 0
        with pytest.raises(Disagreement, match=r"% of 100 images change their class against fp32, and 5 % may"):
            lt.compile(lopsided, pictures(100), batch=[4], precision="int8")

    def test_a_wrong_filter_in_int8_is_not_taken(self, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a runtime makes of the file: one filter of 13 is zero, which 0.25 of the largest output allowed."""
        right = host.trial

        def wrong(candidate: Deployment, source: cpu.Source, inputs: Any) -> cpu.Trial:
            import onnx
            from onnx import numpy_helper

            model = onnx.load_from_string(source.onnx())
            weight = next(t for t in model.graph.initializer if t.name.endswith("weight_quantized") and list(t.dims) == [13, 5, 3, 3])
            values = numpy_helper.to_array(weight).copy()
            values[1] = 0
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
            return right(candidate, replace(source, onnx=model.SerializeToString), inputs)

        monkeypatch.setattr(host, "trial", wrong)
        with pytest.raises(Disagreement, match="from a simulation of the rounding"):
            lt.compile(small(), pictures(128), batch=[4], precision="int8")

    def test_any_number_of_images(self, quick: None) -> None:
        model, images = small(), pictures(11)
        engine = lt.compile(model, images, batch=[4, 2])
        assert engine.batches == [2, 4]
        for count in (1, 2, 3, 4, 5, 11):
            torch.testing.assert_close(engine(images[:count]), model(images[:count]), rtol=1e-4, atol=1e-5)

    def test_bf16_where_the_processor_has_it(self, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "candidates", only("openvino"))
        if host.multiplies_bf16():
            assert lt.compile(small(), pictures(), batch=[1], precision="bf16").decisions[1].max_error < 0.06
        else:
            with pytest.raises(Unavailable, match="no bfloat16 instructions"):
                lt.compile(small(), pictures(), batch=[1], precision="bf16")

    def test_who_computes_something_else_is_not_taken(self, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
        trial, build = host.trial, host.build

        def wrong(candidate: Deployment, source: cpu.Source, inputs: Any) -> cpu.Trial:
            right = trial(candidate, source, inputs)
            return right._replace(run=lambda images: right.run(images) + 1)

        with monkeypatch.context() as patch, pytest.raises(Disagreement, match=r"onnxruntime, 1 thread: its outputs are off by"):
            patch.setattr(host, "trial", wrong)
            lt.compile(small(), pictures(), batch=[1])
        monkeypatch.setattr(host, "build", lambda candidate, source: lambda images: build(candidate, source)(images) + 1)
        with pytest.raises(Disagreement, match=r"1 thread answers otherwise in this process than in its own: its outputs are off by"):
            lt.compile(small(), pictures(), batch=[1])

    @pytest.mark.parametrize("moment", ["building openvino", "timing"])
    def test_a_candidate_that_crashes_is_refused(self, moment: str, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before it is timed, or while it is; its process and sessions are not this one's."""
        monkeypatch.setattr(host, "candidates", only("onnxruntime", "openvino"))

        def on_progress(message: str) -> None:
            if moment in message:
                os.kill(runtimes.shared().processes()["onnxruntime"], signal.SIGSEGV)

        model, images = small(), pictures()
        engine = lt.compile(model, images, batch=[4], on_progress=on_progress)
        assert engine.decisions[4].by == "openvino, 1 thread"
        assert "its process ended by SIGSEGV" in engine.decisions[4].refused["onnxruntime, 1 thread"]
        with torch.no_grad():
            torch.testing.assert_close(engine(images), model(images), rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(host, "candidates", only("onnxruntime"))
        if moment == "timing":
            with pytest.raises(Unavailable, match=r"no runtime can run this network .* SIGSEGV"):
                lt.compile(model, images, batch=[4], on_progress=on_progress)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"device": "tpu"}, InvalidSetting, "unknown device 'tpu'"),
            ({"precision": "fp16"}, InvalidSetting, "fp16 is for GPUs"),
            ({"batch": []}, InvalidSetting, "batch sizes"),
            ({"batch": [0]}, InvalidSetting, "batch sizes"),
            ({"batch": [1, 1]}, InvalidSetting, "batch sizes"),
            ({"example": torch.zeros(1, 3, 8, 8, dtype=torch.float64)}, InvalidModel, "does not run on .* float64"),
            ({"example": torch.full((1, 3, 8, 8), float("nan"))}, InvalidData, "finite"),
        ],
    )
    def test_settings_that_make_no_sense(self, arguments: dict[str, Any], error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            lt.compile(small(), **{"example": pictures(), **arguments})

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_no_gpu(self) -> None:
        with pytest.raises(Unavailable, match="no NVIDIA GPU here"):
            lt.compile(small(), pictures(), device="cuda")

    def test_images_of_another_shape(self, quick: None) -> None:
        engine = lt.compile(small(), pictures(), batch=[1])
        for images in (torch.zeros(1, 3, 9, 8), torch.zeros(3, 8, 8), torch.zeros(0, 3, 8, 8), torch.zeros(1, 3, 8, 8).half()):
            with pytest.raises(InvalidData, match=r"float32 \(N, 3, 8, 8\)"):
                engine(images)


@pytest.mark.slow
class TestThreads:
    """Every thread gets the answers to its own images."""

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls) -> cpu.Source:
        return host.make_source(small(), pictures(), [2], "fp32")

    @pytest.mark.parametrize("threads", [2, 8])
    @pytest.mark.parametrize("runtime", sorted({c.runtime for c in cpu.candidates("fp32")[0]}))
    def test_runtimes_of_the_engine(self, source: cpu.Source, runtime: str, threads: int) -> None:
        run = cpu.build(Deployment("cpu", runtime, 2, "fp32", 0 if runtime == "compile" else 1), source)
        assert wrong_answers(run, small(), threads, 600 // threads) == 0

    @pytest.mark.parametrize("runtime", runtimes.names())
    def test_all_runtimes(self, source: cpu.Source, runtime: str, tmp_path: Path) -> None:
        if reason := runtimes.unavailable(runtime, "cpu"):
            pytest.skip(reason)
        if runtimes.declared(runtime, "READS") and not runtimes.declared(runtime, "READS_ONNX"):
            pytest.skip(f"{runtime} reads files of its own alone")
        (tmp_path / "small.onnx").write_bytes(source.onnx())
        opened = runtimes.load if runtimes.declared(runtime, "DEFAULT", True) else runtimes.load_apart  # others may end this process
        session = opened(Subject("small", small(), tmp_path / "small.onnx"), Deployment("cpu", runtime, len(pictures())))
        bound = [session.bind(images.numpy()) for images in (pictures(), pictures() + 1)]
        for one in bound:
            one.call()
        with torch.no_grad():
            for one, images in zip(bound, (pictures(), pictures() + 1), strict=True):
                torch.testing.assert_close(torch.from_numpy(next(iter(one.read().values()))), small()(images), rtol=1e-3, atol=1e-4)
        assert wrong_answers(lambda images: torch.from_numpy(session.answers(images.numpy())), small(), 8, 50) == 0

    @pytest.mark.parametrize("threads", [2, 8])
    def test_a_loaded_engine(self, saved: Path, threads: int) -> None:
        engine = lt.load_engine(saved)
        assert wrong_answers(engine, small(), threads, 800 // threads, count=3) == 0

    def test_an_engine_of_openvino(self, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "candidates", only("openvino"))
        assert wrong_answers(lt.compile(small(), pictures(), batch=[1]), small(), 8, 50) == 0

    @pytest.mark.parametrize("threads", [2, 8])
    def test_a_graphs_memory_is_used_by_one_call_at_a_time(self, threads: int) -> None:
        program = placed(small(), pictures(2))
        graph = Graph(Executable(program, torch.device("cpu")), capture=Recorded)
        assert wrong_answers(graph, small(), threads, 160 // threads) == 0

    def test_what_shares_a_session_of_a_gpu_gets_its_own_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import onnxruntime

        monkeypatch.setattr(onnxruntime, "OrtValue", FakeValue)
        replay = _ort.Replayed(FakeSession(), Deployment("cuda"), {})  # type: ignore[arg-type]
        first, second = np.ones((2, 3), np.float32), np.full((2, 3), 2, np.float32)
        a, b = replay.bind(first), replay.bind(second)
        a.call()
        b.call()
        assert (a.read()["logits"] == 10).all() and (b.read()["logits"] == 20).all()

        def call(value: int) -> bool:
            bound = replay.bind(np.full((2, 3), value, np.float32))
            return all([bound.call() is None and (bound.read()["logits"] == 10 * value).all() for _ in range(50)])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(call, range(8)))


class FakeValue:
    """In the place of device memory."""

    def __init__(self, shape: list[int]) -> None:
        self.held = np.zeros(shape, np.float32)

    @classmethod
    def ortvalue_from_shape_and_type(cls, shape: list[int], kind: Any, device: str) -> FakeValue:
        return cls(shape)

    def update_inplace(self, values: Any) -> None:
        self.held[:] = values

    def numpy(self) -> Any:
        return self.held.copy()


class FakeSession:
    """In the place of a session of ONNX Runtime on a GPU: ten times its images, and time for another thread in between."""

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="images", shape=[2, 3], type="tensor(float)")]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="logits", shape=[2, 3], type="tensor(float)")]

    def io_binding(self) -> Any:
        self.ends: list[FakeValue] = []
        bind = lambda name, value: self.ends.append(value)  # noqa: E731
        return SimpleNamespace(bind_ortvalue_input=bind, bind_ortvalue_output=bind, synchronize_outputs=lambda: None)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        time.sleep(0)
        self.ends[1].update_inplace(10 * self.ends[0].held)


class TestOwnership:
    @pytest.mark.slow
    def test_the_callers_network_and_images_are_as_they_were(self, quick: None) -> None:
        model, example = small().train(), pictures().requires_grad_()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        engine = lt.compile(model, example, batch=[2])
        assert all(module.training for module in model.modules())
        assert all(value.dtype == before[name].dtype and torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        assert example.requires_grad and example.grad is None and not engine(example).requires_grad


class TestFile:
    @pytest.mark.slow
    def test_a_fresh_process_needs_no_model_code(self, saved: Path, tmp_path: Path) -> None:
        torch.save(pictures(), tmp_path / "x.pt")
        code = (
            "import sys, torch, ltcompile as lt; engine = lt.load_engine(sys.argv[1]);"
            "torch.save(engine(torch.load(sys.argv[2], weights_only=True)), sys.argv[3])"
        )
        subprocess.run([sys.executable, "-c", code, saved, tmp_path / "x.pt", tmp_path / "y.pt"], check=True)
        found = torch.load(tmp_path / "y.pt", weights_only=True)
        torch.testing.assert_close(found, small()(pictures()), rtol=1e-4, atol=1e-5)

    def test_weights_are_held_once(self, saved: Path) -> None:
        weights = sum(p.numel() for p in small().parameters()) * 4
        assert saved.stat().st_size < 2 * weights + 40_000  # graphs and programs; the head is transposed in one of them

    def test_another_machine_is_refused_or_measured_again(self, saved: Path, tmp_path: Path, quick: None) -> None:
        contents = file.load(saved)
        elsewhere = replace(contents, machine={**contents.machine, "cpu": "Z80"})
        file.save(elsewhere, tmp_path / "a.engine")
        with pytest.raises(EngineMismatch, match=r"cpu Z80, here .*retune"):
            lt.load_engine(tmp_path / "a.engine")
        again = lt.load_engine(tmp_path / "a.engine", retune=True)
        again.save(tmp_path / "b.engine")
        torch.testing.assert_close(lt.load_engine(tmp_path / "b.engine")(pictures()), small()(pictures()), rtol=1e-4, atol=1e-5)

    def test_an_engine_that_answers_otherwise_is_refused(self, saved: Path, tmp_path: Path) -> None:
        contents = file.load(saved)
        file.save(replace(contents, probe=(contents.probe[0], (contents.probe[1][0] + 1,))), tmp_path / "a.engine")
        with pytest.raises(Disagreement, match="answers otherwise"):
            lt.load_engine(tmp_path / "a.engine")

    def test_damaged_files(self, saved: Path, tmp_path: Path) -> None:
        whole, path = saved.read_bytes(), tmp_path / "a.engine"
        with pytest.raises(InvalidFile, match="no engine at"):
            lt.load_engine(path)
        for harmed in (b"", whole[: len(whole) // 2], whole[:2000], b"x" + whole, whole.replace(b'\\"kind\\"', b'\\"kinf\\"', 1)[:-1]):
            path.write_bytes(harmed)
            with pytest.raises(InvalidFile, match=r"a\.engine"):
                lt.load_engine(path)

    @pytest.mark.parametrize("harm", ["external", "shape", "runtime", "tiles", "tensor"])
    def test_hostile_files(self, saved: Path, tmp_path: Path, harm: str) -> None:
        import onnx
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(saved, "pt") as opened:
            header = json.loads(opened.metadata()["ltcompile.engine"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        graph = onnx.load_from_string(tensors[header["onnx"]["graph"]].numpy().tobytes())
        weight = next(w for w in graph.graph.initializer if w.name in header["onnx"]["weights"])
        if harm == "external":
            weight.external_data.add(key="location", value="../../etc/passwd")
            weight.data_location = onnx.TensorProto.EXTERNAL
        elif harm == "shape":
            weight.dims[0] = 10**9
        elif harm == "tiles":
            header["variants"][0]["options"]["choices"] = {"conv": {"vectors": "1; }; system(", "height": 1, "width": 1, "lanes": 16}}
        elif harm == "runtime":
            header["variants"][0]["options"]["runtime"] = "os.system"
        else:
            header["onnx"]["weights"][weight.name] = "nothing"
        tensors[header["onnx"]["graph"]] = torch.frombuffer(bytearray(graph.SerializeToString()), dtype=torch.uint8)
        save_file(tensors, tmp_path / "a.engine", {"ltcompile.engine": json.dumps(header)})
        with pytest.raises(InvalidFile):
            lt.load_engine(tmp_path / "a.engine")


@pytest.mark.slow
class TestCommand:
    def call(self, *arguments: object) -> tuple[int, str]:
        from typer.testing import CliRunner

        from ltcompile.cli import app

        done = CliRunner().invoke(app, ["compile", *map(str, arguments)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    def test_a_ticket_becomes_an_engine_and_moves(self, run: Path, tmp_path: Path, quick: None) -> None:
        path = tmp_path / "small.engine"
        code, printed = self.call(run / "ticket.pt", "-o", path, "--batch", 2, "--explain")
        assert code == 0 and "onnxruntime, 1 thread" in printed and "lt.load_engine" in printed
        code, printed = self.call(path, "--retune", "-o", tmp_path / "here.engine", "--json")
        assert code == 0 and json.loads(printed)[0]["batch"] == 2
        assert lt.load_engine(tmp_path / "here.engine").batches == [2]

    def test_the_impossible_is_reported(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match="fp16 is for GPUs"):
            self.call(run / "ticket.pt", "-o", tmp_path / "a.engine", "--precision", "fp16")
        with pytest.raises(InvalidFile, match="no engine at"):
            self.call(tmp_path / "b.engine", "-o", tmp_path / "a.engine", "--retune")
