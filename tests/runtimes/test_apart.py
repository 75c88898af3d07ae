"""A runtime in a process of its own computes and is timed as in this one; its end or silence is an error with a reason, and no more."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save

from ltcompile.benchmark.rows import measure
from ltcompile.core.deployment import Deployment
from ltcompile.core.records import Measurement
from ltcompile.errors import Crashed, InvalidSetting, Unavailable
from ltcompile.lower.inputs import Inputs
from ltcompile.runtimes import Options, Session, Subject, Workers, load, load_apart, shared
from ltcompile.timing import RemoteCall, interleave

RUNTIME = "onnxruntime"


def network(path: Path, scale: float = 2.0) -> Subject:
    """y = scale * x and the whole numbers n + 1, for any batch."""
    shape = ["batch", 3, 4, 4]
    nodes = [helper.make_node("Mul", ["x", "scale"], ["y"]), helper.make_node("Add", ["n", "one"], ["m"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    n, m = (helper.make_tensor_value_info(name, TensorProto.INT64, ["batch"]) for name in "nm")
    values = [numpy_helper.from_array(np.float32(scale), "scale"), numpy_helper.from_array(np.int64(1), "one")]
    write_onnx(path, nodes, [x, n], [y, m], values)
    return Subject(path.stem, onnx=path)


def write_onnx(path: Path, *graph: list[Any]) -> None:
    nodes, *ends = graph
    model = helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    save(model, path)


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(timeout_s=60) as made:
        yield made


def feeds(count: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((count, 3, 4, 4), dtype=np.float32), "n": rng.integers(0, 9, count)}


def opened(workers: Workers, subject: Subject, count: int = 3) -> Session:
    return workers.load(subject, Deployment("cpu", RUNTIME, count, threads=1), Options(watch=True))


def test_answers_are_those_of_this_process(workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subjects = [network(Path(f"by{scale:g}.onnx"), scale) for scale in (2, 3)]
    apart = [opened(workers, subject) for subject in subjects]
    for subject, session in zip(subjects, apart, strict=True):
        here = load(subject, session.deployment)
        assert (session.details, session.dtype) == (here.details, here.dtype) and session.peak_bytes() is not None
        for form in (feeds(), list(feeds(seed=1).values())):
            for name, value in here.run(form).items():
                np.testing.assert_array_equal(session.run(form)[name], value)
    bound = apart[0].bind(feeds())
    bound.call()
    first = bound.read()["y"]
    bound.write(feeds(seed=2))
    bound.call()
    assert not np.array_equal(first, bound.read()["y"])
    np.testing.assert_array_equal(bound.read()["y"], 2 * feeds(seed=2)["x"])
    large = opened(workers, subjects[0], 4000).run(feeds(4000))["y"]  # more than the memory held before
    np.testing.assert_array_equal(large, 2 * feeds(4000)["x"])
    assert len(workers.processes()) == 1


def test_errors_arrive_as_they_are_raised(workers: Workers, tmp_path: Path) -> None:
    session = opened(workers, network(tmp_path / "n.onnx"))
    with pytest.raises(InvalidSetting, match="the network takes x, n"):
        session.run(feeds()["x"])
    with pytest.raises(Unavailable, match=r"the runtime failed: .*Got invalid dimensions"):
        session.run({"x": feeds()["x"][:, :2], "n": feeds()["n"]})
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(Unavailable, match=r"bad\.onnx"):
        opened(workers, Subject("bad", onnx=tmp_path / "bad.onnx"))
    assert session.run(feeds()).keys() == {"y", "m"}  # the process continues


def test_the_time_between_processes_is_not_timed(workers: Workers, tmp_path: Path) -> None:
    """Blocks come from the worker in one piece: of a network that does nothing, a call from here takes many times as long as one there."""
    bound = opened(workers, network(tmp_path / "n.onnx")).bind(feeds())
    times = interleave({"a": bound.call, "b": bound.call}, seconds=0.2, settle_s=0.0)
    began = time.perf_counter()
    for _ in range(50):
        bound.call()
    assert times["a"].shape == times["b"].shape and len(times["a"]) >= 10
    assert np.median(times["a"]) < 1000 * (time.perf_counter() - began) / 50


def test_a_crash_is_a_reason_and_the_next_session_starts_again(workers: Workers, tmp_path: Path) -> None:
    subject = network(tmp_path / "n.onnx")
    session = opened(workers, subject)
    bound, process = session.bind(feeds()), workers.processes()[RUNTIME]
    with Path(f"/proc/{process}/fd/2").open("ab") as output:
        output.write(b"terminate called after throwing\n  what(): no such kernel\n")
    os.kill(process, signal.SIGABRT)
    with pytest.raises(Crashed, match=r"onnxruntime crashed: .* SIGABRT; .* terminate called .* what\(\): no such kernel; use another"):
        interleave({"a": bound.call}, seconds=0.1)
    with pytest.raises(Crashed, match="has ended: its process ended by SIGABRT"):
        session.run(feeds())
    assert opened(workers, subject).run(feeds()).keys() == {"y", "m"} and workers.processes()[RUNTIME] != process


def test_silence_is_a_reason(tmp_path: Path) -> None:
    with Workers(timeout_s=60) as workers:
        session = opened(workers, network(tmp_path / "n.onnx"))
        process = workers.processes()[RUNTIME]
    with pytest.raises(Crashed, match="it was closed"):
        session.run(feeds())
    assert not Path(f"/proc/{process}").exists()
    with Workers(timeout_s=0.01) as workers, pytest.raises(Crashed, match=r"hangs: no answer to 'load' within 0.01 s"):
        opened(workers, network(tmp_path / "n.onnx"))


@pytest.mark.slow
def test_a_runtime_that_crashes_ends_no_benchmark(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in (("x", [1, 4, 4]), ("y", [16]))]
    write_onnx(tmp_path / "net.onnx", [helper.make_node("Flatten", ["x"], ["y"])], ends[:1], ends[1:], [])
    subjects = [Subject(name, torch.nn.Flatten().eval(), tmp_path / "net.onnx") for name in ("dense", "small")]
    seen: list[tuple[str, int]] = []

    def on_row(row: Measurement) -> None:
        seen.append((row.runtime, row.batch))
        if seen == 2 * [(RUNTIME, 1)]:
            os.kill(shared().processes()[RUNTIME], signal.SIGSEGV)

    inputs = Inputs.of(torch.nn.Flatten(), torch.randn(4, 1, 4, 4))
    runtimes = [RUNTIME, "eager"]
    result = measure(subjects, inputs, runtimes=runtimes, devices=["cpu"], batches=[1, 2], seconds_per_row=0.05, on_row=on_row)
    assert seen == [(RUNTIME, 1)] * 2 + [("eager", 1)] * 2 + [("eager", 2)] * 2 and len(result.rows) == 6
    assert "SIGSEGV" in result.skipped[f"{RUNTIME} (cpu): batch 2"]


def test_what_is_dropped_here_is_dropped_there(workers: Workers, tmp_path: Path) -> None:
    session = opened(workers, network(tmp_path / "n.onnx"))
    session.bind(feeds())
    bound = session.bind(feeds())
    gc.collect()
    bound.call()
    del session
    gc.collect()
    bound.call()  # a binding keeps its session
    assert bound.read().keys() == {"y", "m"}


def test_a_run_with_its_inputs_is_timed_in_the_worker(workers: Workers, tmp_path: Path) -> None:
    session = opened(workers, network(tmp_path / "n.onnx"), 4000)
    call, bound = session.repeated(feeds(4000)), session.bind(feeds(4000))
    assert isinstance(call, RemoteCall)
    times = interleave({"run": call, "bound": bound.call}, seconds=0.1, settle_s=0.0)
    assert np.median(times["run"]) > np.median(times["bound"]), "inputs and outputs are copied in one of them"
    workers.release()
    call()  # what is still held stays
    os.kill(workers.processes()[RUNTIME], signal.SIGKILL)
    workers.release()  # and a process that has ended is no error


def test_threads_take_turns(workers: Workers, tmp_path: Path) -> None:
    session, wrong = opened(workers, network(tmp_path / "n.onnx")), list[int]()

    def work(seed: int) -> None:
        wrong.extend(i for i in range(20) if not np.array_equal(session.run(feeds(seed=seed))["y"], 2 * feeds(seed=seed)["x"]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_worker_imports_no_torch_and_ends_with_its_parent(tmp_path: Path) -> None:
    network(tmp_path / "n.onnx")
    script = f"""
import os, sys
from pathlib import Path
from ltcompile.core.deployment import Deployment
from ltcompile.runtimes import Subject, load_apart, shared
session = load_apart(Subject("n", onnx=Path({str(tmp_path / "n.onnx")!r})), Deployment("cpu"))
process = shared().processes()["onnxruntime"]
print(process, "libtorch" in Path(f"/proc/{{process}}/maps").read_text(), "torch" in sys.modules, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    process, *imported = done.stdout.split()
    assert imported == ["False", "False"], done.stderr
    for _ in range(50):
        if not Path(f"/proc/{process}/status").exists() or "zombie" in Path(f"/proc/{process}/status").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker outlives its parent")


def test_a_fork_has_workers_of_its_own(tmp_path: Path) -> None:
    network(tmp_path / "n.onnx")
    script = f"""
import os, numpy as np
from pathlib import Path
from ltcompile.core.deployment import Deployment
from ltcompile.runtimes import Subject, load_apart, shared
subject, inputs = Subject("n", onnx=Path({str(tmp_path / "n.onnx")!r})), {{"x": np.ones((3, 3, 4, 4), np.float32), "n": np.arange(3)}}
session, before = load_apart(subject, Deployment("cpu", batch=3)), shared().processes()
if not (child := os.fork()):
    found = load_apart(subject, Deployment("cpu", batch=3)).run(inputs)
    os._exit(0 if found["y"].mean() == 2 and shared().processes() != before else 1)
assert all(session.run(inputs)["y"].mean() == 2 for _ in range(10)) and os.waitpid(child, 0)[1] == 0 and shared().processes() == before
assert session.run(inputs)["y"].mean() == 2
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_runtimes_that_share_this_process_stay_in_it(tmp_path: Path) -> None:
    before = dict(shared().processes())
    session = load_apart(Subject("n", torch.nn.Identity().eval()), Deployment("cpu", "eager", 1))
    assert session.run(np.ones((1, 2), np.float32)) and shared().processes() == before
