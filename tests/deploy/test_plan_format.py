"""TensorRT engines: built and read back on a GPU; here, by a stand-in for TensorRT that computes in memory of the CPU, and refused without one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kinds import Two
from onnx import TensorProto, helper, save

import ltcompile as lt
from ltcompile import runtimes
from ltcompile.core.deployment import Deployment
from ltcompile.deploy import formats
from ltcompile.deploy.formats import plan
from ltcompile.deploy.job import ShrinkJob
from ltcompile.errors import InvalidSetting, Unavailable
from ltcompile.runtimes import Subject, tensorrt_plan

FAKE = Path(__file__).parents[1] / "support" / "fake_tensorrt"


@pytest.fixture
def pruned() -> lt.Pruned:
    return lt.Pruned(Two().eval(), (torch.randn(2, 3, 9, 9), torch.randn(2, 5)))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A GPU that is the CPU, and the stand-in for its TensorRT, here and in processes that are started."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr("ltcompile.runtimes._devices.missing", lambda device: None)
    monkeypatch.setattr(tensorrt_plan, "AT", "cpu")
    monkeypatch.setattr("torch.cuda.current_stream", lambda: SimpleNamespace(cuda_stream=0, synchronize=lambda: None))


def check(pruned: lt.Pruned, path: Path, precision: str) -> None:
    """The file answers what the network does, for batches of several sizes."""
    done = lt.shrink(pruned, path, precision=precision)  # type: ignore[arg-type]
    assert done.record["onnx_error"] <= done.record["tolerance"] and formats.files(path) == [path]
    session = runtimes.load(Subject("small", file=path), Deployment("cuda", "tensorrt-plan", 3))
    for rows in (3, 1, 3):
        image, extra = torch.randn(rows, 3, 9, 9), torch.randn(rows, 5)
        found = session.bind({"extra": extra.numpy(), "image": image.numpy()})
        found.call()
        with torch.no_grad():
            expected = pruned.small(image, extra)
        for name, value in expected.items():
            np.testing.assert_allclose(found.read()[name], value.numpy(), atol=1e-4 if precision == "fp32" else 2e-2)
    first = session.run([image.numpy(), extra.numpy()])
    assert all(np.array_equal(first[name], found.read()[name]) for name in first)
    with pytest.raises(Unavailable, match=r"takes image up to \(64, 3, 9, 9\), not \(65, 3, 9, 9\)"):
        session.run([np.zeros((65, 3, 9, 9), np.float32), np.zeros((65, 5), np.float32)])


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("precision", plan.PRECISIONS)
def test_an_engine_answers_what_the_network_does(pruned: lt.Pruned, tmp_path: Path, precision: str) -> None:
    check(pruned, tmp_path / "small.plan", precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", plan.PRECISIONS)
def test_on_a_gpu_an_engine_answers_what_the_network_does(pruned: lt.Pruned, tmp_path: Path, precision: str) -> None:
    if reason := formats.unavailable(plan):
        pytest.skip(reason)
    check(pruned, tmp_path / "small.plan", precision)


@pytest.mark.usefixtures("stand_in")
def test_what_is_no_engine_is_refused(pruned: lt.Pruned, tmp_path: Path) -> None:
    (tmp_path / "small.plan").write_bytes(b"of another machine")
    with pytest.raises(Unavailable, match=r"TensorRT 11\.0.* cannot open .*small\.plan: it is damaged, or made for another GPU or version"):
        runtimes.load(Subject("small", file=tmp_path / "small.plan"), Deployment("cuda", "tensorrt-plan", 1))
    with pytest.raises(Unavailable, match=r"tensorrt-plan reads \.plan files, and 'small' has none; write one with"):
        runtimes.load(Subject("small", pruned.small), Deployment("cuda", "tensorrt-plan", 1))
    with pytest.raises(InvalidSetting, match="have fixed shapes"):
        lt.shrink(pruned, tmp_path / "small.plan", dynamic=("batch", "image.2"))


@pytest.mark.usefixtures("stand_in")
def test_an_operator_that_tensorrt_lacks_is_named(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 4, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Bernoulli", ["x"], ["y"], name="odd", seed=1.0)], "g", ends[:1], ends[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "odd.onnx")
    with pytest.raises(
        Unavailable, match=r"odd\.plan was not made: it ended with code 1: In node odd .* No importer for Bernoulli; its log"
    ):
        plan.build(tmp_path / "odd.onnx", tmp_path / "odd.plan")
    assert not (tmp_path / "odd.plan").exists()


def test_without_a_gpu_or_tensorrt_the_reason_is_given(pruned: lt.Pruned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(Unavailable, match=r"\.plan files cannot be written here: .*(NVIDIA GPU|CUDA)"):
            lt.shrink(pruned, tmp_path / "small.plan")
    monkeypatch.setattr("ltcompile.runtimes._devices.missing", lambda device: None)
    monkeypatch.setattr(tensorrt_plan, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"\.plan files cannot be written here: TensorRT is not installed; pip install tensorrt"):
        lt.shrink(pruned, tmp_path / "small.plan")
    with pytest.raises(InvalidSetting, match=r"\.plan files compute in fp32 or fp16, not int8"):
        formats.check(ShrinkJob(tmp_path / "small.plan", "int8"))
    assert "use the device cuda" in str(runtimes.unavailable("tensorrt-plan", "cpu")) and not list(tmp_path.iterdir())
