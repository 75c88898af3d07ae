"""Run a script or module for the GPU without a GPU: `python bench/rehearsal.py SCRIPT ARGUMENTS` or `... -m MODULE ARGUMENTS`.

"cuda" is the CPU, kernels run in Triton's interpreter, and a CUDA graph is a list of operations that a replay runs again on the same
memory. Times mean nothing; errors at import, in bookkeeping and in comparisons show here.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before kernels are defined

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _triton
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

NAME = "no GPU, a rehearsal"
LATER_S = 1e-3  # the made-up time of all runs of a timed call but the first
_generator = torch.Generator


class OnCpu(TorchFunctionMode):
    """Redirects calls for a CUDA device to the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.cuda, torch.Tensor.cpu):  # copies between a GPU and its host
            return args[0].clone()
        return func(*map(_moved, args), **{name: _moved(value) for name, value in (kwargs or {}).items()})


def _moved(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("cuda"):
        return "cpu"
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


class Graph:
    """Operations and launches, run again by `replay`."""

    recording: Graph | None = None

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []
        self.paused = False

    def replay(self) -> None:
        with torch.inference_mode():
            for step in self.steps:
                step()


class Recorder(TorchDispatchMode):
    """Records every operation of a graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not self.graph.paused:

            def again() -> None:
                for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **(kwargs or {}))), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

            self.graph.steps.append(again)
        return made


@contextlib.contextmanager
def record(graph: Graph, **_: Any) -> Iterator[None]:
    Graph.recording = graph
    try:
        with Recorder(graph):
            yield
    finally:
        Graph.recording = None


launch = InterpretedFunction.run


def recorded_run(kernel: Any, *args: Any, **kwargs: Any) -> None:
    graph = Graph.recording
    if graph is None:
        return launch(kernel, *args, **kwargs)
    graph.steps.append(lambda: launch(kernel, *args, **kwargs))
    graph.paused = True
    try:
        return launch(kernel, *args, **kwargs)
    finally:
        graph.paused = False


class _OfTorch(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _generator)


class Generator(metaclass=_OfTorch):
    """PyTorch's, on the CPU."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _generator(_moved(device))


class Event:
    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self, *_: Any) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.at - self.at) + 1e-4

    def synchronize(self) -> None: ...

    def wait(self, *_: Any) -> None: ...


class Stream:
    cuda_stream = 0

    def wait_stream(self, _: Any) -> None: ...


def install() -> None:
    """Replace PyTorch's CUDA device by the fake one, and shorten timing."""
    torch.Generator = Generator  # type: ignore[misc,assignment]
    torch.compile = lambda module=None, **_: module  # type: ignore[assignment]
    torch.version.cuda = torch.version.cuda or "13.0"
    _triton.has_triton = lambda: True
    InterpretedFunction.run = recorded_run
    fakes = {
        "is_available": lambda: True,
        "get_device_name": lambda *_: NAME,
        "get_device_capability": lambda *_: (8, 0),
        "get_device_properties": lambda *_: SimpleNamespace(name=NAME, multi_processor_count=4),
        "device_count": lambda: 1,
        "current_stream": lambda *_: Stream(),
        "stream": lambda _: contextlib.nullcontext(),
        "device": lambda _: contextlib.nullcontext(),
        "synchronize": lambda *_: None,
        "_sleep": lambda _: None,
        "empty_cache": lambda: None,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": record,
    }
    for name, fake in fakes.items():
        setattr(torch.cuda, name, fake)
    for name in ("get_rng_state", "set_rng_state"):  # PyTorch saves a device's generators by the module of its name
        setattr(torch.cpu, name, fakes[name])
    OnCpu().__enter__()
    _shorten()


def _shorten() -> None:
    """Use few copies and configurations, and run timed calls once, since the interpreter is slow."""
    from ltcompile.benchmark.competitors import layers, peaks
    from ltcompile.engine import events, gpu, tune
    from ltcompile.kernels import _gemm

    timed = events.Events.timed

    def timed_once(self: events.Events, call: Callable[[], object]) -> Callable[[], object]:
        first = [timed(self, call)]

        def run() -> None:
            if first:
                first.pop()()
            else:
                self._seconds += LATER_S

        return run

    events.Events.timed = timed_once  # type: ignore[method-assign]
    events.COPIES, events.FLUSHED_BYTES = (2, 2), 1 << 12
    gpu.WARMUPS = 1
    _gemm.TRIED, tune.FINALISTS, tune.SCREEN_S, tune.FINAL_S, layers.GPU_S = 1, 1, 0.0, 0.0, 0.0
    peaks.COPY_BYTES["cuda"], peaks.SIDE["cuda"] = 1 << 12, 16


if __name__ == "__main__":
    install()
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
