"""OpenVINO on the CPU, with its latency hint, in fp32 also where it would take bf16. Reads .xml files with their .bin, and ONNX files."""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltcompile.errors import Unavailable
from ltcompile.paths import write_bytes
from ltcompile.processors import limited, processors
from ltcompile.runtimes import _devices
from ltcompile.runtimes._base import Array, Bound, Feeds, Options, Session, Subject, Trace, by_name, first_line
from ltcompile.runtimes._convert import layers_in, run

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment

ENGINE = {"fp32": "", "bf16": "", "int8": ""}
APART = READS_ONNX = THREADS = True
READS = ".xml"
TRACED = {"cpu": ("fp32", "bf16", "int8")}
CONVERTER = """
import sys, onnx, openvino
network = openvino.Core().read_model(sys.argv[1])
for text in onnx.load(sys.argv[1], load_external_data=False).metadata_props:
    network.set_rt_info(text.value, ["ltcompile", text.key])
openvino.save_model(network, sys.argv[2], compress_to_fp16=False)
"""
PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


def unavailable(device: str) -> str | None:
    """Why OpenVINO cannot run on `device`, or None."""
    if device == "cuda":
        return "OpenVINO does not run on NVIDIA GPUs; use the device cpu"
    if reason := _devices.missing(device):
        return reason
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        return f"OpenVINO does not load ({error}); pip install 'ltcompile[openvino]'"
    return None


@functools.cache
def core() -> Any:
    """The process's only core. Each one swaps the main thread's signal stack for its own (OpenVINO pull request 11894); when two are
    dropped in the order they were made, the thread is left with an unmapped one, and the next signal kills the process.
    """
    import openvino

    return openvino.Core()


def convert(onnx: Path, output: Path, precision: str = "fp32") -> None:
    """Write an ONNX file as OpenVINO IR, OUTPUT.xml and OUTPUT.bin, with its weights as they are and its metadata, in a process of its own.

    Raises:
        Unavailable: OpenVINO lacks an operator, cannot read the file, or ends.
    """
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        made = Path(folder) / "network.xml"
        try:
            run([sys.executable, "-P", "-c", CONVERTER, onnx, made], output.name)
        except Unavailable as error:
            raise Unavailable(f"OpenVINO: {error}{layers_in(str(error), onnx)}; use another format") from error
        write_bytes(output.with_suffix(".bin"), made.with_suffix(".bin").read_bytes())
        write_bytes(output, made.read_bytes())


def load(subject: Subject, deployment: Deployment, options: Options) -> Session:
    """The ONNX file, compiled for the deployment's batch.

    Raises:
        Unavailable: the subject has no ONNX file, or OpenVINO cannot compile it.
    """
    model = subject.file or subject.need_onnx("openvino")
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if deployment.precision == "bf16" else "f32",
    }
    # It follows a cpuset by itself, but no quota, and pins its threads where their number is given.
    threads = deployment.threads or (processors() if limited() else 0)
    more = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    try:
        network = core().read_model(model)
        network.reshape({end: _fixed(end.partial_shape, deployment.batch) for end in network.inputs})
        compiled = core().compile_model(network, "CPU", settings | more | {"PERF_COUNT": options.trace})
    except RuntimeError as error:
        raise Unavailable(f"OpenVINO cannot compile {subject.what}: {first_line(error)}; use another runtime") from error
    return _Session(compiled, deployment, {**settings, "threads": str(threads or "default")}, options.trace)


def _fixed(shape: Any, batch: int) -> Any:
    """`shape` with its dynamic first dimension fixed."""
    if shape.rank.is_static and len(shape) and shape[0].is_dynamic:
        shape[0] = batch
    return shape


def _name(end: Any) -> str:
    """What the file calls an input or output; a tensor can have the names of fused operations, too."""
    name: str = end.node.friendly_name
    return name if name in end.names else str(end.get_any_name())


class _Session(Session):
    """A compiled network; each binding has an inference request of its own, which holds its inputs and outputs."""

    def __init__(self, compiled: Any, deployment: Deployment, details: dict[str, str], trace: bool) -> None:
        super().__init__(deployment, details)
        self._compiled, self._trace, self._calls = compiled, trace, list[list[Any]]()
        self._inputs, self._outputs = ([_name(end) for end in ends] for ends in (compiled.inputs, compiled.outputs))

    def bind(self, inputs: Feeds) -> Bound:
        import openvino

        request, held = self._compiled.create_infer_request(), dict[str, Array]()

        def write(more: Feeds) -> None:
            held.update(by_name(more, self._inputs))  # the request keeps no reference
            for name, array in held.items():
                request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

        def read() -> dict[str, Array]:
            return {name: np.array(request.get_tensor(name).data) for name in self._outputs}

        def traced() -> None:
            request.infer()
            self._calls.append(request.profiling_info)

        write(inputs)
        return Bound(traced if self._trace else request.infer, read, write)

    def layer_times(self) -> Trace:
        if not self._trace:
            return super().layer_times()
        first = self._calls[0]
        us = [[operation.real_time.total_seconds() * 1e6 for operation in call] for call in self._calls]
        return Trace(tuple(o.node_name for o in first), tuple(o.node_type in PRODUCTS for o in first), np.array(us))
