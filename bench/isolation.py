"""What a worker process costs: a network that does nothing, in this process and in one of its own.

    python bench/isolation.py

Prints a table and ends with one line of JSON: median microseconds of a call that is timed here, of one that is timed in the worker, and of a
request to the worker and back, which is in no row of a benchmark.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, save

from ltcompile.core.deployment import Deployment
from ltcompile.core.load import busy_share
from ltcompile.core.records import provenance
from ltcompile.runtimes import Subject, load, load_apart, unavailable
from ltcompile.timing import interleave

RUNTIMES = ("onnxruntime", "openvino", "mnn")  # those that run next to each other in one process, too
REQUESTS = 500


def main() -> None:
    images, rows, busy = np.ones((1, 3, 8, 8), np.float32), {}, busy_share()
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 8, 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "empty", ends[:1], ends[1:])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        for runtime in RUNTIMES:
            if reason := unavailable(runtime, "cpu"):
                print(f"{runtime:<12} skipped: {reason}")
                continue
            deployment = Deployment("cpu", runtime)
            here, there = (opened(Subject("empty", onnx=path), deployment).bind(images) for opened in (load, load_apart))
            times = {name: 1000 * float(np.median(ms)) for name, ms in interleave({"here": here.call, "there": there.call}).items()}
            began = time.perf_counter()
            for _ in range(REQUESTS):
                there.call()
            rows[runtime] = {**times, "request": 1e6 * (time.perf_counter() - began) / REQUESTS}
            print(
                f"{runtime:<12} here {times['here']:7.1f} us   in a worker {times['there']:7.1f} us   request {rows[runtime]['request']:7.1f} us"
            )
    print(json.dumps({"us": rows, "busy_share": busy, "provenance": provenance()}))


if __name__ == "__main__":
    main()
