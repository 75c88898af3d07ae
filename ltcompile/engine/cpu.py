"""Who can run a network on a CPU, and with how many threads: ONNX Runtime, OpenVINO and torch.compile, from data alone."""

from __future__ import annotations

import importlib.util
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ltcompile.engine.engine import Run
from ltcompile.errors import Unavailable
from ltcompile.lower.program import Program
from ltcompile.runtimes._process import freezing, openvino_core

RUNTIMES = ONNXRUNTIME, OPENVINO, COMPILE = "onnxruntime", "openvino", "compile"
OWN = 0


@dataclass(frozen=True)
class Source:
    """A network as data: an ONNX file with a free first dimension (b"" where there is none), and programs by batch size; and, of an int8
    file, the float graph that it was made of, while the engine is made.
    """

    precision: str
    onnx: bytes = b""
    programs: Mapping[int, Program] = field(default_factory=dict)
    plain: bytes = b""


@dataclass(frozen=True)
class Candidate:
    """A runtime and the threads it gets (OWN: as many as it takes by itself, placed as it likes)."""

    runtime: str
    threads: int = OWN

    def __str__(self) -> str:
        return f"{self.runtime}, {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else self.runtime


def candidates(precision: str) -> tuple[list[Candidate], dict[str, str]]:
    """Who is worth timing in a precision on this machine, and who is not, with the reason."""
    threads = thread_counts()
    out = {runtime: reason for runtime in RUNTIMES if (reason := _refusal(runtime, precision))}
    everyone = [Candidate(runtime, n) for runtime in (ONNXRUNTIME, OPENVINO) for n in (OWN, *threads)] + [Candidate(COMPILE)]
    return [c for c in everyone if c.runtime not in out], out


def thread_counts() -> list[int]:
    """One, half and all of the processors that this process may use."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({1, max(1, there // 2), there})


def _refusal(runtime: str, precision: str) -> str:
    if runtime == COMPILE:
        if precision == "int8":
            return "torch.compile does not read ONNX files, and int8 lives in one"
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except (exc.InvalidCxxCompiler, RuntimeError):
            return "it finds no C++ compiler; install g++"
        return ""
    if importlib.util.find_spec(runtime) is None:
        return f"pip install {'ltcompile[openvino]' if runtime == OPENVINO else runtime}"
    return "its CPU provider computes bf16 as fp32" if runtime == ONNXRUNTIME and precision == "bf16" else ""


def build(candidate: Candidate, source: Source, batch: int) -> Run:
    """The network for batches of `batch` contiguous float32 images on the CPU; any number of threads may call it at the same time.

    Raises:
        Unavailable: the runtime is not there, or cannot run the network.
    """
    builders = {ONNXRUNTIME: _onnxruntime, OPENVINO: _openvino, COMPILE: _compile}
    try:
        return builders[candidate.runtime](candidate.threads, source, batch)
    except Unavailable:
        raise
    except Exception as error:  # each runtime raises its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Unavailable(f"{candidate.runtime} cannot run this network: {lines[0][:300]}") from error


def _onnxruntime(threads: int, source: Source, batch: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_free_dimension_override_by_name("batch", batch)
    session = onnxruntime.InferenceSession(_need_onnx(source), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _openvino(threads: int, source: Source, batch: int) -> Run:
    import openvino

    network = openvino_core().read_model(_need_onnx(source))
    shape = network.inputs[0].partial_shape
    network.reshape([batch, *(d.get_length() for d in list(shape)[1:])])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if source.precision == "bf16" else "f32",
    }
    compiled = openvino_core().compile_model(network, "CPU", settings)
    idle = deque([compiled.create_infer_request()])  # a request holds one input and one output: threads never share one

    def run(images: Tensor) -> Tensor:
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            request.set_input_tensor(openvino.Tensor(images.numpy(), shared_memory=True))
            request.infer()
            return torch.from_numpy(request.get_output_tensor().data.copy())
        finally:
            idle.append(request)

    return run


def _compile(threads: int, source: Source, batch: int) -> Run:
    if batch not in source.programs:
        raise Unavailable(f"there is no program for batches of {batch}")
    module = source.programs[batch].module().to(memory_format=torch.channels_last)
    network = torch.compile(module, fullgraph=True, dynamic=False)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            out: Tensor = network(images.contiguous(memory_format=torch.channels_last))
        return out

    with freezing():
        run(torch.zeros(source.programs[batch].input_shape))
    return run


def _need_onnx(source: Source) -> bytes:
    if not source.onnx:
        raise Unavailable("the network has no ONNX form")
    return source.onnx
