"""Every runtime computes what eager computes, and says so when it cannot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ltcompile import processors, registry, runtimes
from ltcompile.core.deployment import DEVICES, Deployment
from ltcompile.errors import InvalidFile, InvalidSetting, Unavailable, UnknownName
from ltcompile.lower import export_onnx
from ltcompile.runtimes import Array, Bound, Feeds, Options, Session, Subject, _devices, _ort
from ltcompile.runtimes._base import by_name

NAMES = sorted(registry.names("ltcompile.runtimes"))
TOLERANCE = {"float32": 1e-5, "tf32": 5e-3}


class Net(nn.Module):
    """Odd widths, because pruning makes them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.bn, self.conv2 = nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.Conv2d(7, 13, 3)
        self.linear = nn.Linear(13, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.conv2(torch.relu(self.bn(self.conv1(x))))).mean((2, 3)))


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8), dtype=np.float32)


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    """Two networks of one class and shape with different weights: a cache that mixes them up is caught."""
    return [export(Net(seed).eval(), tmp_path_factory.mktemp("onnx") / f"net{seed}.onnx") for seed in (0, 1)]


def export(module: nn.Module, path: Path) -> Subject:
    example = (torch.from_numpy(images(2)),)
    torch.onnx.export(module, example, str(path), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    return Subject(path.stem, module, path)


def eager(subject: Subject, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return subject.need_module("eager")(torch.from_numpy(x)).numpy()


def load(name: str, subject: Subject, device: str = "cpu", batch: int = 3, **options: bool) -> Session:
    opened = runtimes.load if runtimes.declared(name, "DEFAULT", True) else runtimes.load_apart  # others may end this process
    return opened(subject, Deployment(device, name, batch), Options(**options))


def answer(session: Session, x: np.ndarray) -> np.ndarray:
    return next(iter(session.run(x).values()))


def need(name: str, device: str) -> None:
    if reason := runtimes.unavailable(name, device):
        pytest.skip(reason)
    if runtimes.declared(name, "READS") and not runtimes.declared(name, "READS_ONNX"):
        pytest.skip(f"{name} reads {runtimes.declared(name, 'READS')} files alone, which the tests of formats write")


def test_there_are_runtimes() -> None:
    assert {"eager", "compile", "onnxruntime", "openvino", "tensorrt", "mnn", "ncnn", "tract"} <= set(NAMES)
    assert {"mnn", "ncnn", "tract"}.isdisjoint(runtimes.available("cpu", every=False))
    assert runtimes.available("cpu")["eager"] is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name == "compile" else name for name in NAMES])
def test_agrees_with_eager(name: str, device: str, subjects: list[Subject]) -> None:
    need(name, device)
    for count in (1, 3):
        sessions = [load(name, subject, device, count) for subject in subjects]
        tolerance = TOLERANCE[sessions[0].dtype]
        for subject, session in zip(subjects, sessions, strict=True):
            x = images(count)
            assert str(session.deployment) == f"{device}:{name}:b{count}:fp32"
            np.testing.assert_allclose(answer(session, x), eager(subject, x), rtol=tolerance, atol=tolerance)
        many = images(7)
        np.testing.assert_allclose(sessions[0].answers(many), eager(subjects[0], many), rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if runtimes.declared(name, "APART")])
def test_memory_is_watched_after_all_imports(name: str, subjects: list[Subject]) -> None:
    """A package that a runtime imports is not what a network takes."""
    need(name, "cpu")
    code = f"""if True:
        import sys
        from pathlib import Path
        from ltcompile import runtimes
        from ltcompile.core.deployment import Deployment
        def watch(device):
            global before
            before = {{name.partition(".")[0] for name in sys.modules}}
        runtimes.watch = watch
        subject = runtimes.Subject("small", onnx=Path({str(subjects[0].onnx)!r}))
        runtimes.load(subject, Deployment("cpu", {name!r}, 3), runtimes.Options(watch=True))
        after = {{name.partition(".")[0] for name in sys.modules}}
        print("new:", *sorted(after - before - sys.stdlib_module_names))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "new:" in done.stdout.splitlines(), done.stdout  # IMPORTS has to name what follows


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_depends_on_its_images_alone(name: str, device: str, subjects: list[Subject]) -> None:
    need(name, device)
    session = load(name, subjects[0], device)
    first = answer(session, images(3, seed=1))
    other = answer(session, images(3, seed=2))
    bound = session.bind(images(3, seed=3))
    bound.call()
    assert not np.allclose(first, other)
    np.testing.assert_allclose(answer(session, images(3, seed=1)), first, rtol=1e-6)
    bound.write(images(3, seed=2))
    bound.call()
    np.testing.assert_allclose(next(iter(bound.read().values())), other, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_runtime_names_what_the_subject_lacks(name: str, subjects: list[Subject]) -> None:
    need(name, "cpu")
    reads_onnx = runtimes.declared(name, "READS_ONNX")
    full = subjects[0]
    poor = Subject("poor", full.module) if reads_onnx else Subject("poor", onnx=full.onnx)
    with pytest.raises(Unavailable, match=f"{name} needs .*{'ONNX file' if reads_onnx else 'torch module'}.*'poor'"):
        load(name, poor)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_a_runtime_that_cannot_run_says_what_to_do(name: str, device: str, subjects: list[Subject]) -> None:
    reason = runtimes.unavailable(name, device)
    if reason is None:
        pytest.skip(f"{name} works on {device}")
    assert any(word in reason for word in ("install", "use", "check"))
    with pytest.raises(Unavailable, match=name):
        load(name, subjects[0], device)


def test_signals_do_no_harm_after_openvino(subjects: list[Subject]) -> None:
    """Ctrl-C after two networks came and went: a process with two cores would be left without a signal stack, and die."""
    need("openvino", "cpu")
    script = f"""
import faulthandler, signal, numpy
from pathlib import Path
from ltcompile import runtimes
from ltcompile.core.deployment import Deployment
from ltcompile.runtimes import Subject
faulthandler.enable()
for _ in range(2):
    pair = [runtimes.load(Subject(name, onnx=Path(name)), Deployment("cpu", "openvino")) for name in {[str(s.onnx) for s in subjects]}]
    [session.run(numpy.zeros((1, 3, 8, 8), numpy.float32)) for session in pair]
    del pair[0], pair
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have had it ignored
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match="onnxruntime"):
        runtimes.unavailable("onnxruntim", "cpu")
    with pytest.raises(InvalidSetting, match="tpu"):
        runtimes.available("tpu")


def test_listing_the_runtimes_imports_nothing_heavy() -> None:
    script = "import sys; from ltcompile import registry, benchmark; registry.names('ltcompile.runtimes'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "ltcompile.runtimes.tensorrt" in loaded
    assert not {"torch", "onnx", "onnxruntime", "openvino", "tensorrt"} & set(loaded)


def test_subjects_check_themselves(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="neither"):
        Subject("empty")
    with pytest.raises(InvalidFile, match="no ONNX file"):
        Subject("gone", onnx=tmp_path / "gone.onnx")
    with pytest.raises(InvalidSetting, match="training mode"):
        Subject("training", Net(0))
    with pytest.raises(InvalidSetting, match="bfloat16"):
        Subject("narrow", Net(0).eval().bfloat16())


class Many(nn.Module):
    """Inputs of several ranks and dtypes, and a dictionary of outputs."""

    def forward(self, tokens: torch.Tensor, scale: torch.Tensor, volume: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": tokens.float().sum(1, keepdim=True) * scale, "largest": volume.amax((2, 3, 4)), "tokens": tokens + 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_inputs_and_outputs_of_any_rank_and_dtype(name: str, tmp_path: Path) -> None:
    need(name, "cpu")
    rng = np.random.default_rng(0)
    arrays = {
        "tokens": rng.integers(0, 9, (3, 5)),
        "scale": rng.standard_normal((3, 1), dtype=np.float32),
        "volume": rng.standard_normal((3, 2, 4, 3, 2), dtype=np.float32),
    }
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    export_onnx(Many(), tensors, tmp_path / "many.onnx")
    if name == "ncnn":
        with pytest.raises(Unavailable, match=r"no operator 'Tensor\.to', which .* needs for its layer"):
            load(name, Subject("many", Many().eval(), tmp_path / "many.onnx"))
        return
    session = load(name, Subject("many", Many().eval(), tmp_path / "many.onnx"))
    expected = Many()(**tensors)
    for inputs in (arrays, dict(reversed(arrays.items())) if runtimes.declared(name, "READS_ONNX") else arrays, list(arrays.values())):
        found = session.run(inputs)
        assert len(found) == len(expected)
        for got, wanted in zip(found.values(), expected.values(), strict=True):
            assert got.dtype == wanted.numpy().dtype
            np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises((InvalidSetting, TypeError)):
        session.run(arrays["scale"])


class OneMemory(Session):
    """As MNN's: whatever is bound is computed in the same memory."""

    thread_safe = False

    def bind(self, inputs: Feeds) -> Bound:
        held, found = by_name(inputs, ["x"]), dict[str, Array]()

        def call() -> None:
            self.memory = held["x"]
            time.sleep(1e-4)  # another thread's turn
            found["y"] = 2 * self.memory

        return Bound(self.in_turns(call), lambda: dict(found), lambda more: held.update(by_name(more, ["x"])))


def test_bindings_of_one_memory_take_turns() -> None:
    session, start = OneMemory(Deployment("cpu"), {}), threading.Barrier(4)

    def wrong(value: int) -> int:
        x, bound = np.full(3, value), session.bind(np.full(3, value))
        start.wait()
        found = [bound.call() or bound.read()["y"] for _ in range(20)] + [session.run(x)["y"] for _ in range(20)]
        return sum(not np.array_equal(y, 2 * x) for y in found)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(wrong, range(4))) == 0


@pytest.mark.parametrize("name", NAMES)
def test_threads_are_the_deployments_or_refused(name: str, subjects: list[Subject]) -> None:
    need(name, "cpu")
    deployment = Deployment.parse(f"cpu:{name}:b3:fp32:t2")
    if runtimes.declared(name, "THREADS"):
        session = runtimes.load_apart(subjects[0], deployment)
        assert session.details["threads"] == "2"
        np.testing.assert_allclose(answer(session, images(3)), eager(subjects[0], images(3)), rtol=1e-5, atol=1e-5)
    else:
        with pytest.raises(Unavailable, match="OMP_NUM_THREADS"):
            runtimes.load(subjects[0], deployment)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="needs Linux and two processors")
def test_onnx_runtime_has_no_more_threads_than_processors_that_it_may_use(subjects: list[Subject]) -> None:
    code = f"""
import os, pathlib
from ltcompile.runtimes._ort import open_session
import onnxruntime
count = lambda: len(os.listdir("/proc/self/task"))
os.sched_setaffinity(0, {{next(iter(os.sched_getaffinity(0)))}})
before = count()
session = open_session(pathlib.Path({str(subjects[0].need_onnx("onnxruntime"))!r}))
print(count() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n", "the caller's thread is the one"


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_quota_of_processor_time_limits_threads(name: str, subjects: list[Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "quota", lambda: 1.0)
    monkeypatch.setattr(processors, "cpuset", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert load(name, subjects[0]).details["threads"] == "1"


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_timed_where_a_runtime_records_them(name: str, subjects: list[Subject]) -> None:
    need(name, "cpu")
    if "fp32" in runtimes.declared(name, "TRACED", {}).get("cpu", ()):
        session = load(name, subjects[0], trace=True)
        bound = session.bind(images(3))
        for _ in range(4):
            bound.call()
        trace = session.layer_times()
        assert trace.us.shape == (4, len(trace.names)) and (trace.us >= 0).all() and trace.us.sum() > 0 and sum(trace.products) >= 3
        with pytest.raises(Unavailable, match="without recording"):
            load(name, subjects[0]).layer_times()
    else:
        with pytest.raises(Unavailable, match="records no times"):
            load(name, subjects[0], trace=True)


def test_sessions_are_opened_here_alone() -> None:
    """Whatever drives a runtime of its own handles batches, threads and spinning in its own way."""
    opens = re.compile(
        r"InferenceSession\(|openvino\.Core|compile_model\(|torch\.compile\(|cuda\.graph\(|aoti_|MNN\.Interpreter\(|ncnn\.Net\(|tract\.onnx\("
    )
    package = Path(runtimes.__file__).parents[1]
    lines = {
        f"{path.relative_to(package)}": line
        for path in [*package.rglob("*.py"), *(package / "kernels").rglob("*.py")]
        for line in path.read_text().splitlines()
        if opens.search(line) and '"""' not in line
    }
    there = {name for name in lines if not name.startswith("runtimes/")}
    assert len(lines) - len(there) >= 3 and there <= {"training/step.py"}, there  # which compiles what is trained


class Fallen:
    """A session that CUDA was requested for and that took the CPU, as ONNX Runtime does when a library is missing."""

    def __init__(self, file: str, options: object, providers: object, enable_fallback: int) -> None:
        type(self).options, type(self).enable_fallback = options, enable_fallback

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_falling_back_to_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch, subjects: list[Subject]) -> None:
    import onnxruntime

    module = registry.load("ltcompile.runtimes", "runtime", "onnxruntime")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with pytest.raises(Unavailable, match="fell back from CUDAExecutionProvider to CPUExecutionProvider"):
        module.load(subjects[0], Deployment("cuda"), Options())
    assert Fallen.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert Fallen.enable_fallback == 0


def test_a_missing_provider_library_is_an_error(subjects: list[Subject]) -> None:
    if runtimes.unavailable("onnxruntime", "cuda") is None:
        pytest.skip("CUDA works here")
    with pytest.raises(Unavailable, match="CUDAExecutionProvider"):
        registry.load("ltcompile.runtimes", "runtime", "onnxruntime").load(subjects[0], Deployment("cuda"), Options())


def test_a_file_that_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(Unavailable, match=r"bad\.onnx"):
        load("onnxruntime", Subject("bad", onnx=tmp_path / "bad.onnx"))


def test_replay_keeps_its_buffers(subjects: list[Subject]) -> None:
    """The CUDA path's binding, on the CPU: fixed buffers, refilled for each answer."""
    subject, deployment = subjects[0], Deployment("cpu", batch=3)
    file = subject.need_onnx("test")
    replay = _ort.Replayed(_ort.open_session(file, sizes={"batch": 3}), deployment, {}, at="cpu")
    for seed in (1, 2):
        bound = replay.bind(images(3, seed))
        bound.call()
        np.testing.assert_allclose(next(iter(bound.read().values())), eager(subject, images(3, seed)), rtol=1e-5, atol=1e-5)
    with pytest.raises(Unavailable, match="fixed shapes"):
        _ort.Replayed(_ort.open_session(file), deployment, {}, at="cpu")


def test_no_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "/nowhere/g++")
    assert "C++ compiler" in str(runtimes.unavailable("compile", "cpu"))


def test_a_failed_compilation_is_a_reason() -> None:
    class Untraceable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) if float(x.sum().item()) > 0 else x.flatten(1) + 1

    need("compile", "cpu")
    with pytest.raises(Unavailable, match="'untraceable'"):
        load("compile", Subject("untraceable", Untraceable().eval()), batch=1).run(images(1))


@pytest.mark.parametrize(("convolutions", "products"), [(True, False), (False, True), (False, False)])
def test_tf32_is_reported_for_layers_that_take_it(convolutions: bool, products: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    before = torch.backends.cuda.matmul.allow_tf32
    convolution, linear = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=convolutions):
        torch.backends.cuda.matmul.allow_tf32 = products
        try:
            found = [_devices.torch_dtype(network, "cuda") for network in (convolution, linear)]
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    assert found == ["tf32" if convolutions else "float32", "tf32" if products else "float32"]
    assert _devices.torch_dtype(convolution, "cpu") == "float32" and _devices.onnxruntime_dtype("cuda") == "tf32"
