"""What a worker process costs, by a network that does nothing, and what happens to runtimes that share one process.

    python bench/isolation.py

Prints a table and writes bench/results/isolation.json: median microseconds of a call that is timed in a process of its own, of one that is timed in
ltcompile's worker, and of a request to the worker and back, which is in no row of a benchmark; and how a process ends that opens all runtimes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _common import finish
from onnx import TensorProto, helper, save

from ltcompile.core.deployment import Deployment
from ltcompile.core.load import busy_share
from ltcompile.runtimes import Subject, load, load_apart, unavailable
from ltcompile.timing import interleave

RUNTIMES = ("onnxruntime", "openvino", "mnn", "ncnn", "tract")
REQUESTS, TIMEOUT_S = 500, 120


def timed(path: Path, runtime: str) -> dict[str, float]:
    """Microseconds of a call here and in a worker, and of a request."""
    images, deployment = np.ones((1, 3, 8, 8), np.float32), Deployment("cpu", runtime)
    here, there = (opened(Subject("empty", onnx=path), deployment).bind(images) for opened in (load, load_apart))
    times = {name: 1000 * float(np.median(ms)) for name, ms in interleave({"here": here.call, "there": there.call}).items()}
    began = time.perf_counter()
    for _ in range(REQUESTS):
        there.call()
    return {**times, "request": 1e6 * (time.perf_counter() - began) / REQUESTS}


def in_child(path: Path, *names: str) -> tuple[dict[str, dict[str, float]], str]:
    """The rows of runtimes that one process opens one after the other, as far as it came, and how it ended."""
    command, ended = [sys.executable, __file__, "--child", str(path), *names], "did not end"
    with tempfile.TemporaryFile() as out:
        try:
            code = subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False).returncode
            ended = f"signal {-code}" if code < 0 else f"code {code}"
        except subprocess.TimeoutExpired:
            pass
        out.seek(0)
        rows = [json.loads(line) for line in out.read().decode().splitlines() if line.startswith("[")]
    return dict(rows), ended


def main() -> None:
    busy = busy_share()
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 8, 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "empty", ends[:1], ends[1:])
    rows, outcomes, names = {}, {}, [name for name in RUNTIMES if unavailable(name, "cpu") is None]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        for name in names:
            found, outcomes[name] = in_child(path, name)
            rows |= found
            us = "   ".join(f"{key} {value:7.1f} us" for key, value in found.get(name, {}).items())
            print(f"{name:<12} {us or 'ended with ' + outcomes[name]}", flush=True)
        together, outcomes["together"] = in_child(path, *names)
    print(f"all in one process: {', '.join(together) or 'none'} ran, and it ended with {outcomes['together']}")
    finish("isolation", {"bench": "isolation", "us": rows, "ran_together": [*together], "ended": outcomes, "busy_share": busy})


def child(path: Path, names: list[str]) -> None:
    for name in names:
        print(json.dumps([name, timed(path, name)]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
