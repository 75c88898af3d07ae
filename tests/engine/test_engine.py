"""Engines: programs on kernels mean what networks compute, memory never overlaps, the fastest is taken, and files are data.

What needs Triton's interpreter runs in one process of its own: this file, as a script.
"""

from __future__ import annotations

import functools
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, shaken
from torch import Tensor, nn

import ltcompile as lt
from ltcompile import kernels, runtimes
from ltcompile.core.deployment import Deployment
from ltcompile.engine import cpu, cudnn, file, host, tune
from ltcompile.engine.events import cold_us, copies, record, replays_ms
from ltcompile.engine.executable import GRAPH, PERSISTENT, Choice, Executable, buffers, persistent_refusal, specs
from ltcompile.engine.gpu import Graph, cudnn_autotuned, execution_modes
from ltcompile.engine.memory import Buffer, living_bytes, plan_memory
from ltcompile.engine.rerank import rerank
from ltcompile.errors import BadData, BadFile, BadSetting, Disagreement, StaleEngine, Unavailable
from ltcompile.kernels import _gemm
from ltcompile.lower import serialization
from ltcompile.lower.lower import lower, to_layout
from ltcompile.lower.program import Program
from ltcompile.numerics import TOLERANCES, largest_error
from ltcompile.runtimes import Subject, _ort
from ltcompile.timing import Fastest

pytestmark = pytest.mark.usefixtures("cached_exports")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def small() -> nn.Module:
    """Odd widths, a residual and a pooled head."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.bn = nn.Conv2d(3, 13, 3, padding=1, bias=False), nn.BatchNorm2d(13)
            self.a, self.b = nn.Conv2d(13, 5, 1), nn.Conv2d(5, 13, 3, padding=1)
            self.down, self.head = nn.Conv2d(13, 11, 3, padding=1), nn.Linear(11, 7)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(self.stem(x)).relu()
            x = (x + self.b(self.a(x).relu())).relu()
            x = nn.functional.max_pool2d(self.down(x).relu(), 2)
            out: Tensor = self.head(x.mean((2, 3)))
            return out

    torch.manual_seed(0)
    return shaken(Block())


def pictures(count: int = 4, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def placed(model: nn.Module, images: Tensor, precision: str = "fp32") -> Program:
    return to_layout(lower(model, images).program, images, precision).program


def with_cudnn(program: Program) -> dict[str, Choice]:
    return {n.name: Choice("cudnn") for n in program.nodes if n.target.startswith("kernel.") and not cudnn.refusal(n)}


def run_twice(executable: Executable, images: Tensor) -> Tensor:
    """The second answer in an arena that was full of NaN: nothing is read that was not written."""
    executable.images.copy_(images)
    for _ in range(2):
        executable._arena.fill_(255)
        executable.run()
    return executable.answer()


class TestMemory:
    @given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 30), st.integers(0, 10)), max_size=40))
    @settings(deadline=None, max_examples=200)
    def test_no_two_living_buffers_overlap(self, drawn: list[tuple[int, int, int]]) -> None:
        there = [Buffer(str(i), size, first, first + length) for i, (size, first, length) in enumerate(drawn)]
        plan = plan_memory(there)
        for a in there:
            assert plan.offsets[a.name] % 256 == 0 and plan.offsets[a.name] + a.size_bytes <= plan.size_bytes
            for b in there:
                apart = (
                    plan.offsets[a.name] + a.size_bytes <= plan.offsets[b.name]
                    or plan.offsets[b.name] + b.size_bytes <= plan.offsets[a.name]
                )
                assert a is b or apart or not a.overlaps(b)
        assert plan.size_bytes >= living_bytes(there)

    def test_a_chain_takes_two_buffers_and_a_network_little_more_than_its_floor(self) -> None:
        chain = [Buffer(str(i), 1024, i, i + 1) for i in range(9)]
        assert plan_memory(chain).size_bytes == 2048
        program = placed(shaken(lt.build_model("resnet20")), pictures(2, 32))
        there = buffers(program, {})
        assert plan_memory(there).size_bytes <= 1.05 * living_bytes(there) < 0.3 * sum(b.size_bytes for b in there)


class TestPlacing:
    def test_every_network_runs_in_planned_memory_and_survives_json_in_half_precision(self, network: nn.Module, images: Tensor) -> None:
        lowered = lower(network, images).program
        program = to_layout(lowered, images, "fp32").program
        with torch.no_grad():
            expected = network(images)
        for choices in ({}, with_cudnn(program)):
            found = run_twice(Executable(program, torch.device("cpu"), choices), images)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        half = to_layout(lowered, images, "fp16").program
        again = serialization.from_json(json.loads(json.dumps(serialization.to_json(half))), half.constants)
        assert torch.equal(again.run(images), half.run(images))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "side", "left"),
        [
            ("vgg16", 32, set()),
            ("torchvision:resnet18", 64, set()),
            ("torchvision:mobilenet_v2", 64, set()),
            ("torchvision:regnet_y_400mf", 64, {"aten.mean.dim", "aten.mul.Tensor"}),
            ("torchvision:alexnet", 64, {"aten.adaptive_avg_pool2d.default", "aten.reshape.default"}),
        ],
    )
    def test_known_networks_run_on_our_kernels(self, name: str, side: int, left: set[str]) -> None:
        targets = Counter(n.target for n in placed(shaken(lt.build_model(name)), pictures(2, side), "fp16").nodes)
        assert {t for t in targets if t.startswith("aten.")} - {"aten._to_copy.default"} == left
        assert targets["layout.enter"] == 1 + (name.endswith("alexnet"))  # its pool leaves the layout

    def test_a_flatten_becomes_a_view(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4)).eval()
        program = placed(model, pictures())
        assert [n.target for n in program.nodes] == [
            "layout.enter",
            "kernel.conv2d",
            "aten.reshape.default",
            "kernel.linear",
            "layout.leave",
        ]
        torch.testing.assert_close(program.run(pictures()), model(pictures()), rtol=1e-4, atol=1e-5)

    def test_what_a_precision_cannot_hold_is_refused(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
        with torch.no_grad():
            model[0].weight[0, 0] = 1e5
        program = lower(model, pictures()).program
        with pytest.raises(BadSetting, match=r"fp16 does not fit this network: .* beyond 65504"):
            to_layout(program, pictures(), "fp16")
        assert to_layout(program, pictures(), "bf16").error < 0.06

    def test_biases_stay_in_fp32(self) -> None:
        """Not rounded on the mode, and a large one is no reason to refuse."""
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)).eval()
        with torch.no_grad():
            model[0].bias[0] = -1e5
        program = placed(model, pictures(), "fp16")
        biases = [value for name, value in program.constants.items() if name.endswith(".bias") and value.dtype == torch.float32]
        for layer, found in zip((model[0], model[3]), biases, strict=True):
            assert torch.equal(found[:4], layer.bias)
        assert largest_error(program.run(pictures()), model(pictures()).detach()) < 5e-3

    def test_told_names_what_is_left_to_pytorch_and_why(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 4, 1)).eval()
        told = to_layout(lower(model, pictures()).program, pictures(), "fp32").outcomes
        assert told["softplus"] == "left to PyTorch: no kernel does it" and told["conv2d"].startswith("our conv2d, stride 8")


class TestSerial:
    def program(self) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
        program = lower(small(), pictures()).program
        return serialization.to_json(program), program.constants

    @pytest.mark.parametrize(
        "target", ["aten.set_.source_Tensor", "os.system", "fused.nothing", "kernel.persistent", "aten.nothing.default"]
    )
    def test_only_known_operations(self, target: str) -> None:
        value, constants = self.program()
        value["nodes"][0]["target"] = target
        with pytest.raises(BadFile, match="which programs do not have"):
            serialization.from_json(value, constants)

    @pytest.mark.parametrize("harm", ["no nodes", "a later value", "given twice", "no output", "not a dictionary"])
    def test_damage_is_told(self, harm: str) -> None:
        value, constants = self.program()
        if harm == "no nodes":
            del value["nodes"]
        elif harm == "a later value":
            value["nodes"].reverse()
        elif harm == "given twice":
            value["nodes"].append(value["nodes"][-1])
        elif harm == "no output":
            value["output"] = "nothing"
        with pytest.raises(BadFile, match="this is no program"):
            serialization.from_json([] if harm == "not a dictionary" else value, constants)

    def test_infinities_and_nested_values(self) -> None:
        program = lower(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), pictures()).program
        node = replace(program.nodes[-1], kwargs={**program.nodes[-1].kwargs, "a": [float("-inf"), [None, True]]})
        told = json.loads(json.dumps(serialization.to_json(replace(program, nodes=(node,)))))
        assert serialization.from_json(told, program.constants).nodes[0].kwargs["a"] == [float("-inf"), [None, True]]


def only(*names: str) -> Callable[[str, int], tuple[list[Deployment], dict[str, str]]]:
    return lambda precision, batch=1: ([Deployment("cpu", name, batch, precision, 1) for name in names], {})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of one candidate, timed as briefly as can be."""
    monkeypatch.setattr(host, "candidates", only("onnxruntime"))
    monkeypatch.setattr(host, "SCREEN_S", 0.0)
    monkeypatch.setattr(host, "FINAL_S", 0.0)


@pytest.mark.slow
class TestOnCpu:
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_everyone_is_timed_and_the_fastest_taken(self, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "SCREEN_S", 0.0)
        monkeypatch.setattr(host, "FINAL_S", 0.0)
        told: list[str] = []
        engine = lt.compile(small(), pictures(128), batch=[3], precision=precision, on_progress=told.append)
        decision = engine.decisions[3]
        runtimes = {who.split(",")[0] for who in [*decision.ms, *decision.refused]}
        assert runtimes == {"onnxruntime", "openvino", "compile"} and {decision.by, decision.runner_up} <= set(decision.ms)
        assert decision.lead is not None and (decision.ms[decision.by] <= decision.ms[decision.runner_up] or decision.tie)
        assert (0 if precision == "fp32" else 1e-3) < decision.max_error <= TOLERANCES[precision] and any("timing" in line for line in told)
        assert ("compile" in decision.refused) == (precision == "int8")

    def test_int8_is_refused_where_it_costs_too_much_or_nothing_tells(self, quick: None) -> None:
        with pytest.raises(BadData, match=r"99 images do not show how much: pass 100 real ones or more"):
            lt.compile(small(), pictures(99), batch=[1], precision="int8")
        with pytest.raises(BadSetting, match="max_drop=101: it is the per cent"):
            lt.compile(small(), pictures(100), batch=[1], precision="int8", max_drop=101)
        lopsided = small()
        with torch.no_grad():  # one range for all: what is small among the activations is lost
            lopsided.a.weight[0], lopsided.a.bias[0] = 1e4, 1e4
            lopsided.b.weight[:, 0] = 0
        with pytest.raises(Disagreement, match=r"% of 100 images change their class against fp32, and 5 % may"):
            lt.compile(lopsided, pictures(100), batch=[4], precision="int8")

    def test_a_wrong_filter_in_int8_is_not_taken(self, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a runtime makes of the file: one filter of 13 is zero, which 0.25 of the largest output allowed."""
        right = host.build

        def wrong(candidate: Deployment, source: cpu.Source) -> Callable[[Tensor], Tensor]:
            import onnx
            from onnx import numpy_helper

            model = onnx.load_from_string(source.onnx)
            weight = next(t for t in model.graph.initializer if t.name.endswith("weight_quantized") and list(t.dims) == [13, 5, 3, 3])
            values = numpy_helper.to_array(weight).copy()
            values[1] = 0
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
            return right(candidate, replace(source, onnx=model.SerializeToString()))

        monkeypatch.setattr(host, "build", wrong)
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
        right = host.build
        wrong = lambda candidate, source: lambda images: right(candidate, source)(images) + 1  # noqa: E731
        monkeypatch.setattr(host, "build", wrong)
        with pytest.raises(Disagreement, match=r"onnxruntime, 1 thread: its outputs are off by"):
            lt.compile(small(), pictures(), batch=[1])

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"device": "tpu"}, BadSetting, "no device 'tpu'"),
            ({"precision": "fp16"}, BadSetting, "fp16 is for GPUs"),
            ({"batch": []}, BadSetting, "batch sizes"),
            ({"batch": [0]}, BadSetting, "batch sizes"),
            ({"batch": [1, 1]}, BadSetting, "batch sizes"),
            ({"example": torch.zeros(1, 3, 8, 8, dtype=torch.float64)}, BadData, "float32"),
            ({"example": torch.full((1, 3, 8, 8), float("nan"))}, BadData, "finite"),
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
            with pytest.raises(BadData, match=r"float32 \(N, 3, 8, 8\)"):
                engine(images)


def wrong_answers(run: Callable[[Tensor], Tensor], model: nn.Module, threads: int, calls: int, count: int = 2) -> int:
    """How many of `calls` calls by each of `threads` threads, all with images of their own, give the answers to other images."""
    inputs = [torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(at)) for at in range(threads)]
    with torch.no_grad():
        expected = [model(images) for images in inputs]
    start = threading.Barrier(threads)

    def call(at: int) -> int:
        start.wait()
        return sum(not torch.allclose(run(inputs[at]), expected[at], rtol=1e-3, atol=1e-4) for _ in range(calls))

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(call, range(threads)))


@pytest.mark.slow
class TestThreads:
    """Every thread gets the answers to its own images."""

    @pytest.fixture(scope="class")
    def source(self) -> cpu.Source:
        return host.make_source(small(), pictures(), [2], "fp32")

    @pytest.mark.parametrize("threads", [2, 8])
    @pytest.mark.parametrize("runtime", sorted({c.runtime for c in cpu.candidates("fp32")[0]}))
    def test_runtimes_of_the_engine(self, source: cpu.Source, runtime: str, threads: int) -> None:
        run = cpu.build(Deployment("cpu", runtime, 2, "fp32", 0 if runtime == "compile" else 1), source)
        assert wrong_answers(run, small(), threads, 600 // threads) == 0

    @pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "compile", "eager"])
    def test_all_runtimes(self, source: cpu.Source, runtime: str, tmp_path: Path) -> None:
        (tmp_path / "small.onnx").write_bytes(source.onnx)
        session = runtimes.load(Subject("small", small(), tmp_path / "small.onnx"), Deployment("cpu", runtime, len(pictures())))
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
    def test_the_callers_network_and_images_are_as_they_were(self, quick: None) -> None:
        model, example = small().train(), pictures().requires_grad_()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        engine = lt.compile(model, example, batch=[2])
        assert all(module.training for module in model.modules())
        assert all(value.dtype == before[name].dtype and torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        assert example.requires_grad and example.grad is None and not engine(example).requires_grad


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "small.engine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "candidates", only("onnxruntime"))
        patch.setattr(host, "SCREEN_S", 0.0)
        lt.compile(small(), pictures(), batch=[1, 4]).save(path)
    return path


class TestFile:
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
        with pytest.raises(StaleEngine, match=r"cpu Z80, here .*retune"):
            lt.load_engine(tmp_path / "a.engine")
        again = lt.load_engine(tmp_path / "a.engine", retune=True)
        again.save(tmp_path / "b.engine")
        torch.testing.assert_close(lt.load_engine(tmp_path / "b.engine")(pictures()), small()(pictures()), rtol=1e-4, atol=1e-5)

    def test_an_engine_that_answers_otherwise_is_refused(self, saved: Path, tmp_path: Path) -> None:
        contents = file.load(saved)
        file.save(replace(contents, probe=(contents.probe[0], contents.probe[1] + 1)), tmp_path / "a.engine")
        with pytest.raises(Disagreement, match="answers otherwise"):
            lt.load_engine(tmp_path / "a.engine")

    def test_damaged_files(self, saved: Path, tmp_path: Path) -> None:
        whole, path = saved.read_bytes(), tmp_path / "a.engine"
        with pytest.raises(BadFile, match="no engine at"):
            lt.load_engine(path)
        for harmed in (b"", whole[: len(whole) // 2], whole[:2000], b"x" + whole, whole.replace(b'\\"kind\\"', b'\\"kinf\\"', 1)[:-1]):
            path.write_bytes(harmed)
            with pytest.raises(BadFile, match=r"a\.engine"):
                lt.load_engine(path)

    @pytest.mark.parametrize("harm", ["external", "shape", "runtime", "tensor"])
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
        elif harm == "runtime":
            header["variants"][0]["options"]["runtime"] = "os.system"
        else:
            header["onnx"]["weights"][weight.name] = "nothing"
        tensors[header["onnx"]["graph"]] = torch.frombuffer(bytearray(graph.SerializeToString()), dtype=torch.uint8)
        save_file(tensors, tmp_path / "a.engine", {"ltcompile.engine": json.dumps(header)})
        with pytest.raises(BadFile):
            lt.load_engine(tmp_path / "a.engine")


class TestTuning:
    CHOICES = (Choice("triton", kernels.Config(64, 32, 32), {"triton": 1.5, "cudnn": 2.0}), Choice("cudnn", None, {"cudnn": 2.0}))

    def test_the_cache_comes_back_and_a_damaged_one_is_empty(self, tmp_path: Path) -> None:
        path = tmp_path / "tuned.json"
        cache = tune.Cache(path)
        cache.put("H200", "layer", self.CHOICES)
        cache.write()
        assert tune.Cache(path).get("H200", "layer") == self.CHOICES and not tune.Cache(path).get("H100", "layer")
        entries = ('{"by": "me"}', '[{"by": "me"}]', '[{"by": "triton", "config": {"block_m": 3}}]', '{"a": 1}')
        for damaged in ("{", "[]", '{"H200": 3}', *(f'{{"H200": {{"layer": {entry}}}}}' for entry in entries)):
            path.write_text(damaged)
            assert not tune.Cache(path).get("H200", "layer")

    def test_processes_that_tune_at_the_same_time_lose_nothing(self, tmp_path: Path) -> None:
        def write(name: str) -> None:
            for at in range(20):
                cache = tune.Cache(tmp_path / "tuned.json")
                cache.put("H200", f"{name} {at}", self.CHOICES)
                cache.write()

        running = [multiprocessing.get_context("fork").Process(target=write, args=(name,)) for name in "abc"]
        for process in running:
            process.start()
        for process in running:
            process.join()
        assert [process.exitcode for process in running] == [0, 0, 0]
        assert set(json.loads((tmp_path / "tuned.json").read_text())["H200"]) == {f"{name} {at}" for name in "abc" for at in range(20)}

    def test_finalists_are_chosen_inside_the_network(self) -> None:
        """What is fastest alone is replaced by what saves the network's time; equal layers keep one choice; what fails is not chosen."""
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *[nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)]).eval()
        program = placed(model, pictures())
        stem, *same = [node.name for node in program.nodes if node.target == "kernel.conv2d"]
        slow, fast, failing = (Choice("triton", kernels.Config(64, 16, 16 << i)) for i in range(3))
        cost = {slow.config: 2.0, fast.config: 1.0}
        seen: list[set[str]] = []

        def in_network_ms(found: Mapping[str, Mapping[str, Choice]]) -> dict[str, float]:
            seen.append(set(found))
            return {k: sum(cost[c.config] for c in choices.values()) for k, choices in found.items() if failing not in choices.values()}

        finalists = {stem: (slow, fast), **dict.fromkeys(same, (slow, failing, fast))}
        assert rerank(program, finalists, in_network_ms) == dict.fromkeys([stem, *same], fast)
        assert seen == [{"0", "1"}, {"0", "1", "2"}]
        cost[fast.config] = 1.999
        assert rerank(program, finalists, in_network_ms) == dict.fromkeys([stem, *same], slow), "the gain is below the noise"

    def test_copies_of_a_layers_memory_are_bounded(self) -> None:
        assert [copies(n) for n in (1, 1 << 27, 1 << 33)] == [32, 8, 2]

    def test_references_are_plain_fp32_and_need_no_search(self) -> None:
        was = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
        try:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
            with tune.exact():
                cudnn = torch.backends.cudnn
                inside = (torch.get_float32_matmul_precision(), cudnn.benchmark, cudnn.allow_tf32)
            assert inside == ("highest", False, False) and (torch.get_float32_matmul_precision(), cudnn.benchmark) == ("high", True)
            with cudnn_autotuned():
                assert cudnn.benchmark and not cudnn.allow_tf32
        finally:
            torch.set_float32_matmul_precision(was[0])
            torch.backends.cudnn.benchmark = was[1]

    @pytest.mark.parametrize("harm", ["", "wrong", "refuses"])
    def test_cudnn_is_checked_before_it_is_timed(self, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the interpreter our kernel runs on no CPU: what is left is cuDNN's form of the layer."""
        program = placed(nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU()).eval(), pictures(1, 2))
        node = next(node for node in program.nodes if node.target == "kernel.conv2d")
        right = cudnn.layer

        def harmed(*given: Any) -> Callable[..., Tensor]:
            if harm == "refuses":
                raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")
            layer = right(*given)
            return lambda x, residual: layer(x, residual) + (0.1 if harm == "wrong" else 0.0)

        monkeypatch.setattr(cudnn, "layer", harmed)
        layer = tune._Layer(node, specs(program), program.constants, torch.device("cpu"))
        timer = lambda work, count, seconds: {name: float(run(count - 1) is not None) for name, run in work.items()}  # noqa: E731
        if harm:
            with pytest.raises(Disagreement, match="no configuration"):
                layer.choose(timer)
        else:
            assert layer.choose(timer) == (Choice("cudnn", None, {"cudnn": 1.0}),)

    def test_a_residual_of_odd_width_is_tuned(self) -> None:
        """Its padding is zero, as in a network: else no answer is right."""

        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 1)

            def forward(self, x: Tensor) -> Tensor:
                y = self.a(x)
                return (y + self.b(y)).relu()

        program = placed(Residual().eval(), pictures(1, 2))
        node = next(node for node in program.nodes if node.target == "kernel.conv2d" and len(node.args) > 3 and node.args[3] is not None)
        layer = tune._Layer(node, specs(program), program.constants, torch.device("cpu"))
        timer = lambda work, count, seconds: dict.fromkeys(work, 1.0)  # noqa: E731
        assert layer.choose(timer) == (Choice("cudnn", None, {"cudnn": 1.0}),)

    def test_memory_of_graphs_lives_while_they_are_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ltcompile.engine import gpu as module

        program, alive = placed(small(), pictures(2)), list[weakref.ref[Executable]]()

        def capture(executable: Executable) -> None:
            alive.append(weakref.ref(executable))

        def replays_ms(graphs: Mapping[str, Any], seconds: float) -> dict[str, float]:
            gc.collect()
            assert len(alive) == 2 and all(executable() is not None for executable in alive)
            return dict.fromkeys(graphs, 1.0)

        monkeypatch.setattr(module, "Graph", functools.partial(Graph, capture=capture))
        monkeypatch.setattr(module, "replays_ms", replays_ms)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(module.Gpu, "device", torch.device("cpu"))
        assert module.Gpu("fp32")._in_network_ms(program, {"a": {}, "b": {}}) == {"a": 1.0, "b": 1.0}

    def test_a_persistent_kernel_is_for_small_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
        assert PERSISTENT in execution_modes(placed(model, pictures(64, 2)))[0]
        assert "at most 64 images" in execution_modes(placed(model, pictures(65, 2)))[1][PERSISTENT]

    def test_equal_layers_are_one(self) -> None:
        program = placed(shaken(lt.build_model("resnet20")), pictures(1, 32), "fp16")
        ours = [n for n in program.nodes if n.target.startswith("kernel.")]
        assert (len(ours), len({tune.signature(n, specs(program)) for n in ours})) == (22, 12)


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
        code, told = self.call(run / "ticket.pt", "-o", path, "--batch", 2, "--explain")
        assert code == 0 and "onnxruntime, 1 thread" in told and "lt.load_engine" in told
        code, told = self.call(path, "--retune", "-o", tmp_path / "here.engine", "--json")
        assert code == 0 and json.loads(told)[0]["batch"] == 2
        assert lt.load_engine(tmp_path / "here.engine").batches == [2]

    def test_what_cannot_be_is_told(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(BadSetting, match="fp16 is for GPUs"):
            self.call(run / "ticket.pt", "-o", tmp_path / "a.engine", "--precision", "fp16")
        with pytest.raises(BadFile, match="no engine at"):
            self.call(tmp_path / "b.engine", "-o", tmp_path / "a.engine", "--retune")


# Through Triton's interpreter


def interpret_all() -> None:
    """Every mode to run a network, and tuning with a timer that is told what is fast; prints what went wrong."""
    failures: dict[str, str] = {}
    model, images = small(), pictures(2, 4)
    program = placed(model, images, "fp16")
    for mode in (GRAPH, PERSISTENT):
        found = run_twice(Executable(program, torch.device("cpu"), mode=mode), images)
        error = largest_error(found, model(images).detach())
        if not error < 5e-3:
            failures[mode] = str(error)
    failures |= _tune_interpreted() | _gpu_engine_without_a_gpu()
    print(json.dumps(failures))


def _tune_interpreted() -> dict[str, str]:
    program = placed(nn.Sequential(nn.Conv2d(3, 5, 1)).eval(), pictures(1, 2))
    space = lambda arguments: [kernels.Config(64, 16, 16), kernels.Config(64, 16, 32)]  # noqa: E731
    timed = list[dict[str, Any]]()

    def timer(work: Mapping[str, Callable[[int], Any]], count: int, seconds: float) -> dict[str, float]:
        timed.append(dict(work))
        for run in work.values():
            run(count - 1)
        return {name: {"0": 3.0, "1": 1.0, "cudnn": 2.0}[name] for name in work}

    with mock.patch.object(_gemm.Product, "space", space), tempfile.TemporaryDirectory() as folder:
        cache = tune.Cache(Path(folder) / "tuned.json")
        found, again = (tune.tune(program, torch.device("cpu"), "here", cache, timer, lambda told: None) for _ in range(2))
    expected = (Choice("triton", kernels.Config(64, 16, 32), {"cudnn": 2.0, "triton": 1.0}),)
    return {} if list(found.values()) == [expected] and again == found and len(timed) == 2 else {"tune": f"{found} {again} {timed}"}


class Recorded:
    """In the place of a CUDA graph: a replay runs the executable on its one copy of the memory."""

    def __init__(self, executable: Executable) -> None:
        if executable.mode == "dependent graph":
            raise Unavailable("the interpreter knows no other kernel")
        self.replay = executable.run
        executable.run()


def fake_fastest(graphs: Mapping[str, Any], seconds: float) -> Fastest:
    first, second = sorted(graphs, key=len)
    times = {name: np.full((10, 2), float(len(name))) for name in (first, second)}
    return Fastest(first, second, times, (2.0, 1.5, 2.5), {name: float(len(name)) for name in graphs})


def _gpu_engine_without_a_gpu() -> dict[str, str]:
    """Everything of the GPU's engine but the GPU: tuned, chosen, saved, loaded, tuned again."""
    from ltcompile.engine import gpu as module

    folder = Path(tempfile.mkdtemp())
    cuda = {"get_device_capability": lambda: (9, 0), "get_device_name": lambda: "none"}
    with (
        mock.patch.multiple(torch.cuda, **cuda),
        mock.patch.object(_gemm, "TRIED", 2),
        mock.patch.multiple(
            module,
            Graph=functools.partial(module.Graph, capture=Recorded),
            cold_us=lambda work, count, seconds: {name: 1.0 + (name == "cudnn") for name in work},
            fastest_replay=fake_fastest,
            replays_ms=lambda graphs, seconds: {name: 1.0 for name in graphs},
        ),
        mock.patch.multiple(
            module.Gpu, device=torch.device("cpu"), __init__=lambda self, precision: setattr(self, "precision", precision or "fp16")
        ),
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder)}),
    ):
        model, images = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 4)).eval(), pictures(2, 4)
        engine = lt.compile(model, images, device="cuda", batch=[2])
        engine.save(folder / "a.engine")
        loaded, again = lt.load_engine(folder / "a.engine"), lt.load_engine(folder / "a.engine", retune=True)
        error = max(largest_error(e(images), model(images).detach()) for e in (engine, loaded, again))
        decision = engine.decisions[2]
        right = decision.by == "graph" and set(decision.ms) == {"graph", "one kernel"} and "dependent graph" in decision.refused
        layers = list(decision.layers.values())
        told = layers[1].startswith("triton (") and "cudnn 2.0 us" in layers[1] and layers[0] == "PyTorch"
    return {} if right and told and error < 5e-3 and (folder / "ltcompile/tuned.json").exists() else {"gpu": f"{decision} {error}"}


@pytest.mark.slow
def test_interpreted_kernels_run_whole_networks_in_every_way() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_why_a_network_is_not_one_kernel() -> None:
    assert persistent_refusal(placed(small(), pictures())) == ""
    concatenating = placed(shaken(NETWORKS["cascaded_concat"]()), pictures(1, 16))
    assert "aten.cat.default, which is none of our kernels" in persistent_refusal(concatenating)
    assert persistent_refusal(placed(nn.Sequential(nn.Softplus()).eval(), pictures())) == "none of our kernels runs in it"


# On a GPU


class TestOnGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
    def test_every_way_agrees_and_the_file_comes_back(self, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        model, images = small(), pictures(8)
        engine = lt.compile(model, images, device="cuda", batch=[1, 8], precision=precision)
        for decision in engine.decisions.values():
            assert set(decision.ms) >= {"graph", "one kernel"}, decision.refused
        assert largest_error(engine(images).cpu(), model(images)) <= TOLERANCES[precision]
        engine.save(tmp_path / "a.engine")
        torch.testing.assert_close(lt.load_engine(tmp_path / "a.engine")(images), engine(images), rtol=1e-3, atol=1e-3)

    def test_replays_do_not_depend_on_what_came_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        engine = lt.compile(small(), pictures(2, 4), device="cuda", batch=[2])
        first = engine(pictures(2, 4))
        engine(torch.randn(2, 3, 4, 4))
        assert torch.equal(engine(pictures(2, 4)), first)

    def test_threads_and_their_streams_get_their_own_answers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        engine, model = lt.compile(small(), pictures(8), device="cuda", batch=[2], precision="fp32"), small()

        def on_a_stream(images: Tensor) -> Tensor:
            with torch.cuda.stream(torch.cuda.Stream()):
                return engine(images).cpu()

        for run in (lambda images: engine(images).cpu(), on_a_stream):
            assert wrong_answers(run, model, 8, 250) == 0

    def test_layers_are_timed_cold(self) -> None:
        """A copy that fits into the L2 takes longer when its source is not there."""
        x = [torch.randn(1 << 22, device="cuda") for _ in range(2)]
        times = {"copies": cold_us({"copy": lambda at: x[at].clone()}, 2, 0.05)["copy"], "same": 0.0}
        graph = record(lambda: [x[0].clone() for _ in range(32)])
        times["same"] = 1000 * replays_ms({"": graph}, 0.05)[""] / 32
        assert times["copies"] > 1.1 * times["same"]


if __name__ == "__main__":
    interpret_all()
