"""The laws of measuring: fair turns, honest intervals, answers before times."""

from __future__ import annotations

import csv
import gc
import importlib
import io
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ltcompile import registry, timing
from ltcompile.benchmark.reference import reference_of
from ltcompile.benchmark.rows import measure
from ltcompile.core import load
from ltcompile.core.load import busy_share
from ltcompile.core.memory import watch
from ltcompile.core.records import Measurement
from ltcompile.errors import Disagreement, InvalidData, InvalidSetting, Unavailable, UnknownName
from ltcompile.lower.inputs import Inputs
from ltcompile.runtimes import Subject
from ltcompile.timing import interleave

bench_module = importlib.import_module("ltcompile.benchmark.rows")
CLASSES = 5
MIB = 2**20


class World:
    """A clock that only calls move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def call(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            assert not gc.isenabled()
            self.now += seconds
            self.order.append(name)

        return run

    def interleave(self, durations_s: dict[str, float], **settings: float) -> dict[str, np.ndarray]:
        calls = {name: self.call(name, seconds) for name, seconds in durations_s.items()}
        return interleave(calls, clock=lambda: self.now, **settings)


def test_subjects_take_turns() -> None:
    world = World()
    times = world.interleave({"a": 0.001, "b": 0.002, "c": 0.004})
    turns = [name for name, _ in itertools.groupby(world.order[world.order.index("c") :])]
    forth_and_back = list("abc" + "cba") * (timing.BLOCKS // 2 + 1)
    expected = [name for name, _ in itertools.groupby(["c", *forth_and_back[: 3 * timing.BLOCKS]])]
    assert turns == expected
    assert {name: len(ms) for name, ms in times.items()} == dict.fromkeys("abc", timing.BLOCKS)
    for name, ms in (("a", 1.0), ("b", 2.0), ("c", 4.0)):
        np.testing.assert_allclose(times[name], ms)


def test_a_block_settles_before_it_measures() -> None:
    for run_s in (0.001, 0.5):
        world = World()
        ms = world.interleave({"a": run_s}, warmup=2)["a"]
        unmeasured = len(world.order) - 2 - ms.size
        assert unmeasured * run_s >= len(ms) * timing.SETTLE_S * 0.999
        assert unmeasured >= len(ms)


@pytest.mark.parametrize("run_s", [1e-5, 1e-3, 0.01, 0.05])
@pytest.mark.parametrize("subjects", [1, 3])
def test_interleaving_keeps_its_budget(run_s: float, subjects: int) -> None:
    world = World()
    times = world.interleave({str(i): run_s for i in range(subjects)}, seconds=2.0, runs=1500)
    assert world.now <= 2.0 * subjects + 2 * subjects * (timing.SETTLE_S + 3 * run_s)
    for ms in times.values():
        assert timing.MIN_BLOCKS * timing.MIN_RUNS_PER_BLOCK <= ms.size <= 1500


def test_slow_calls_get_the_minimum_and_fast_ones_get_more() -> None:
    world = World()
    times = world.interleave({"slow": 0.4, "fast": 0.001}, seconds=2.0)
    assert times["slow"].shape == (timing.MIN_BLOCKS, timing.MIN_RUNS_PER_BLOCK)
    assert times["fast"].shape[0] == timing.MIN_BLOCKS
    assert times["fast"].size > 100


def test_what_takes_much_longer_than_settling_settles_within_itself() -> None:
    slow_s = 1.01 * timing.SLOW * timing.SETTLE_S
    world = World()
    times = world.interleave({"slow": slow_s, "fast": 0.001}, seconds=2.0)
    assert times["slow"].shape == (timing.MIN_BLOCKS, 1)
    assert world.order.count("slow") == timing.MIN_BLOCKS + 2, "but for the warm-up, every run is measured"
    assert World().interleave({"slow": slow_s}, seconds=2.0, settle_s=0.0)["slow"].shape == (timing.MIN_BLOCKS, timing.MIN_RUNS_PER_BLOCK)


def test_gc_is_restored_after_a_failing_call() -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        interleave({"a": fail})
    assert gc.isenabled()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports resident memory")
def test_the_watch_sees_what_memory_is_taken_and_nothing_else() -> None:
    def take() -> None:
        np.ones(64 * MIB, dtype=np.uint8)

    above = watch("cpu")
    take()
    taken = above()
    if taken is None:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    assert 63 * MIB <= taken < 80 * MIB  # Linux counts to a few hundred KiB
    assert (watch("cpu")() or 0) < 16 * MIB  # what was taken and freed before does not count


def module(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, CLASSES)).eval()


def subject(name: str, path: Path, seed: int = 0, onnx_seed: int | None = None) -> Subject:
    """The network of `seed`, with the ONNX file of `onnx_seed`, which should be the same one."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = [(n, p.detach().numpy()) for n, p in module(seed if onnx_seed is None else onnx_seed).named_parameters()]
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Gemm", ["flat", "1.weight", "1.bias"], ["y"], transB=1)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path / f"{name}.onnx"))
    return Subject(name, module(seed), path / f"{name}.onnx")


IMAGES = np.random.default_rng(0).standard_normal((70, 3, 4, 4), dtype=np.float32)
INPUTS = Inputs.of(module(0), torch.from_numpy(IMAGES))
QUICK = {"batches": (1, 3), "seconds_per_row": 0.1, "devices": ["cpu"]}


@pytest.fixture
def pair(tmp_path: Path) -> list[Subject]:
    return [subject("dense", tmp_path), subject("ticket", tmp_path, seed=1)]


@pytest.fixture
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("timed before it was checked")

    monkeypatch.setattr(bench_module, "interleave", never)


@pytest.mark.usefixtures("no_settling")
def test_bench_measures_every_subject_on_every_backend(pair: list[Subject]) -> None:
    with torch.inference_mode():
        labels = module(0)(torch.from_numpy(IMAGES)).argmax(1).numpy()
    seen: list[Measurement] = []
    result = measure(pair, INPUTS, labels, runtimes=["eager", "onnxruntime"], **(QUICK | {"batches": (1, 100)}), on_row=seen.append)
    assert result.rows == seen
    assert [(r.runtime, r.batch, r.subject) for r in seen] == list(
        itertools.product(["eager", "onnxruntime"], [1, 100], ["dense", "ticket"])
    )
    for row in seen:
        assert 0 < row.ms_p20 <= row.ms_p50 <= row.ms_p80
        assert row.max_error < 1e-5
        assert row.runs >= timing.MIN_BLOCKS * timing.MIN_RUNS_PER_BLOCK
        assert (row.accuracy == 1.0) == (row.subject == "dense")
        assert (row.speedup is None) == (row.subject == "dense")
        assert Measurement.from_json(row.to_json()) == row
    assert set(result.details) == {"eager (cpu)", "onnxruntime (cpu)"}
    assert result.to_json()["rows"][0]["subject"] == "dense"
    table = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert [float(line["ms_p50"]) for line in table] == [row.ms_p50 for row in seen]
    assert table[0]["speedup"] == ""


@pytest.mark.usefixtures("no_timing")
def test_a_wrong_answer_is_never_timed(tmp_path: Path) -> None:
    wrong = [subject("dense", tmp_path), subject("ticket", tmp_path, seed=1, onnx_seed=2)]
    with pytest.raises(Disagreement, match=r"onnxruntime \(cpu\) and the reference disagree on 'ticket' at batch 1: outputs are off by"):
        measure(wrong, INPUTS, runtimes=["eager", "onnxruntime"], **QUICK)


@pytest.mark.usefixtures("no_timing")
def test_not_a_number_is_a_wrong_answer(pair: list[Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module.Session, "run", lambda _, feeds: {"y": np.full((len(feeds["input"]), CLASSES), np.nan, np.float32)})
    with pytest.raises(Disagreement, match="nan"):
        measure(pair, INPUTS, runtimes=["eager"], **QUICK)


@pytest.fixture
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_S", 0.0)


def break_backend(monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> None:
    monkeypatch.setattr(registry.load("ltcompile.runtimes", "runtime", name), "unavailable", lambda _: reason)


def leave_only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in set(registry.names("ltcompile.runtimes")) - set(names):
        break_backend(monkeypatch, name, "left out; install it")


@pytest.mark.usefixtures("no_timing")
def test_what_was_requested_must_work(pair: list[Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    break_backend(monkeypatch, "openvino", "no library; pip install it")
    with pytest.raises(Unavailable, match=r"openvino \(cpu\): no library; pip install it"):
        measure(pair, INPUTS, runtimes=["eager", "openvino"], **QUICK)
    with pytest.raises(UnknownName, match="onnxruntime"):
        measure(pair, INPUTS, runtimes=["onnxruntim"], **QUICK)
    with pytest.raises(Unavailable, match="'dense' has none"):
        measure([Subject("dense", pair[0].module)], INPUTS, runtimes=["onnxruntime"], **QUICK)
    if not torch.cuda.is_available():
        with pytest.raises(Unavailable, match=r"eager \(cuda\)"):
            measure(pair, INPUTS, devices=["cuda"])


@pytest.mark.usefixtures("no_settling")
def test_what_was_not_requested_is_skipped_with_its_reason(pair: list[Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    leave_only(monkeypatch, "eager", "onnxruntime")
    result = measure([pair[0], Subject("ticket", pair[1].module)], INPUTS, **QUICK)
    assert result.skipped["openvino (cpu)"] == "left out; install it"
    assert "'ticket' has none" in result.skipped["onnxruntime (cpu): ticket"]
    assert {(r.runtime, r.subject) for r in result.rows} == {("eager", "dense"), ("eager", "ticket"), ("onnxruntime", "dense")}


@pytest.mark.usefixtures("no_settling")
@pytest.mark.parametrize(("precision", "dtype"), [("int8", "int8"), ("fp16", "float32"), (None, "float32")])
def test_rows_name_the_type_of_products(tmp_path: Path, precision: str | None, dtype: str) -> None:
    """Of each network its own; a CPU multiplies integers as they are, and half precision in single."""
    pair = [subject("dense", tmp_path), Subject("small", None, subject("small", tmp_path, seed=1).onnx)]
    references = {"small": replace(reference_of(pair[1]), precision=precision)} if precision else None
    rows = measure(pair, INPUTS, runtimes=["onnxruntime"], **(QUICK | {"batches": (1,)}), references=references).rows
    assert {row.subject: row.dtype for row in rows} == {"dense": "float32", "small": dtype}


@pytest.mark.parametrize(
    ("before", "after", "share"), [((0, 0), (50, 100), 0.5), ((40, 50), (40, 90), 1.0), ((7, 9), (7, 9), 0.0), (None, (1, 2), None)]
)
def test_busy_share_is_of_the_time_between(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int] | None, after: tuple[int, int], share: float | None
) -> None:
    ticks = iter([before, after])
    monkeypatch.setattr(load, "ticks", lambda: next(ticks))
    monkeypatch.setattr(load, "SAMPLE_S", 0.0)
    assert busy_share() == share


@pytest.mark.usefixtures("no_settling")
def test_without_the_reference_there_is_no_speedup(pair: list[Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    leave_only(monkeypatch, "eager", "onnxruntime")
    result = measure([Subject("dense", None, pair[0].onnx), pair[1]], INPUTS, **QUICK)
    assert [(r.subject, r.speedup) for r in result.rows if r.runtime == "eager"] == [("ticket", None)] * 2


@pytest.mark.usefixtures("no_timing")
def test_bench_refuses_nonsense(pair: list[Subject]) -> None:
    for bad in (np.zeros_like(IMAGES), np.full_like(IMAGES, np.nan), np.full_like(IMAGES, np.inf)):
        with pytest.raises(InvalidData, match="all zero or not finite"):
            measure(pair, Inputs.of(module(0), torch.from_numpy(bad)))
    with pytest.raises(InvalidData, match="labels"):
        measure(pair, INPUTS, np.zeros(3, dtype=np.int64))
    for settings in ({"batches": (0, 1)}, {"batches": ()}, {"batches": (1, 1)}, {"reference": "gone"}, {"devices": ["tpu"]}):
        with pytest.raises(InvalidSetting):
            measure(pair, INPUTS, **settings)
    with pytest.raises(InvalidSetting, match="one name"):
        measure([pair[0], pair[0]], INPUTS)
