"""What ONNX Runtime's providers share: sessions that never fall back silently, on a CPU or as a replayed CUDA graph. Imports no torch."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltcompile.errors import Unavailable
from ltcompile.processors import processors
from ltcompile.runtimes import _devices
from ltcompile.runtimes._base import Array, Bound, Feeds, Options, Session, Subject, Trace, by_name, first_line

if TYPE_CHECKING:
    import onnxruntime

    from ltcompile.core.deployment import Deployment

Provider = tuple[str, dict[str, str]]
CPU: Provider = ("CPUExecutionProvider", {})
CUDA: Provider = ("CUDAExecutionProvider", {"prefer_nhwc": "1", "enable_cuda_graph": "1"})
ERRORS, NOTHING = 3, 4  # what is logged
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul", "QLinearConv", "QLinearMatMul", "QGemm")
_NUMPY = {"float": np.float32, "double": np.float64, "float16": np.float16, "bool": np.bool_} | {
    f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def missing(device: str, provider: str) -> str | None:
    """Why ONNX Runtime has no `provider` on `device`, or None."""
    if reason := _devices.missing(device):
        return reason
    try:
        import onnxruntime
    except ImportError as error:
        return f"onnxruntime does not load ({error}); pip install {'onnxruntime' if device == 'cpu' else 'onnxruntime-gpu'}"
    if provider not in onnxruntime.get_available_providers():
        return f"this onnxruntime was built without {provider}; pip uninstall onnxruntime, then pip install onnxruntime-gpu"
    return None


def open_session(
    model: Path | bytes,
    providers: Sequence[Provider] = (CPU,),
    sizes: Mapping[str, int] | None = None,
    *,
    threads: int = 0,
    spin: bool = True,
    trace: Path | None = None,
    log: int = ERRORS,
) -> onnxruntime.InferenceSession:
    """A session of `model` on the first of `providers`, with every node on one of them.

    Args:
        sizes: what to fix dynamic dimensions to, by name.
        threads: of one operation; 0 for one on each physical core, or on each processor that this process is confined to.
        spin: they wait actively for 40 ms after a call, on cores that others could use.
        trace: how the file begins into which ONNX Runtime writes the time of each operation.
        log: the least severity that is logged.

    Raises:
        Unavailable: the provider does not load, leaves a node to the CPU, or cannot read the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise Unavailable(f"onnxruntime does not load ({error}); pip install onnxruntime, or onnxruntime-gpu") from error
    wanted, what = providers[0][0], "the network" if isinstance(model, bytes) else str(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = log
    options.intra_op_num_threads = threads or _confined()
    options.add_session_config_entry("session.load_model_format", "ONNX")
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    if not spin:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if trace is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    if wanted != CPU[0]:
        onnxruntime.preload_dlls()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        source = model if isinstance(model, bytes) else str(model)
        session = onnxruntime.InferenceSession(source, options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # it raises its own types
        raise Unavailable(f"ONNX Runtime's {wanted} cannot run {what}: {first_line(error)}; use another runtime") from error
    if (got := session.get_providers()[0]) != wanted:
        raise Unavailable(
            f"ONNX Runtime fell back from {wanted} to {got} for {what}: its libraries did not load (its log "
            "above says why); install the CUDA and cuDNN versions that this onnxruntime was built for"
        )
    return session


def _confined() -> int:
    """How many processors this process may use, where it may not use all of them; 0 otherwise.

    ONNX Runtime counts all, and several threads that spin on one processor wait for each other for tens of milliseconds.
    """
    return 0 if processors() == os.cpu_count() else processors()


def run_once(model: Path | bytes, inputs: Feeds) -> dict[str, Array]:
    """The outputs by name of an ONNX file on the CPU, with its dimensions left dynamic. Raises Unavailable."""
    session = open_session(model, log=NOTHING)
    try:
        return dict(zip(_outputs(session), session.run(None, by_name(inputs, _inputs(session))), strict=True))
    except Exception as error:
        raise Unavailable(f"ONNX Runtime cannot run the network: {first_line(error)}") from error


Ends = list[tuple[str, str, list[int | str | None]]]  # names, types and shapes


def describe(model: bytes) -> tuple[dict[str, str], Ends, Ends]:
    """The metadata, inputs and outputs of an ONNX file, as ONNX Runtime reads it. Raises Unavailable."""
    session = open_session(model, log=NOTHING)
    inputs, outputs = ([(end.name, end.type, list(end.shape)) for end in ends] for ends in (session.get_inputs(), session.get_outputs()))
    return dict(session.get_modelmeta().custom_metadata_map), inputs, outputs


def load(subject: Subject, deployment: Deployment, options: Options, providers: Sequence[Provider]) -> Session:
    """The subject's ONNX file on `providers`.

    Raises:
        Unavailable: the subject has no ONNX file, or `open_session` refuses it.
    """
    model = subject.need_onnx(deployment.runtime)
    sizes = dict.fromkeys(_batch_names(model), deployment.batch) if options.sizes is None else options.sizes
    if deployment.device == "cpu":
        folder = Path(tempfile.mkdtemp(prefix="ltcompile-")) if options.trace else None
        trace = folder and folder / "trace"
        return OnCpu(open_session(model, providers, sizes, threads=deployment.threads, spin=options.spin, trace=trace), deployment, folder)
    if not options.wait:
        providers = [(name, settings | _stream()) for name, settings in providers]
    return Replayed(open_session(model, providers, sizes), deployment, dict(providers[0][1]), wait=options.wait)


def _batch_names(model: Path | bytes) -> set[str]:
    """What the file calls the dynamic first dimensions of its inputs."""
    import onnx

    try:
        proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model), load_external_data=False)
    except Exception:  # the session says why
        return set()
    shapes = [end.type.tensor_type.shape.dim for end in proto.graph.input]
    return {dims[0].dim_param for dims in shapes if dims and dims[0].dim_param}


def _stream() -> dict[str, str]:
    """PyTorch's current stream, as a provider's setting."""
    import torch

    return {"user_compute_stream": str(torch.cuda.current_stream().cuda_stream)}


def _inputs(session: Any) -> list[str]:
    return [end.name for end in session.get_inputs()]


def _outputs(session: Any) -> list[str]:
    return [end.name for end in session.get_outputs()]


class OnCpu(Session):
    """A session of the CPU provider; `traces` is the folder of its trace, which goes when the session does."""

    def __init__(self, session: onnxruntime.InferenceSession, deployment: Deployment, traces: Path | None = None) -> None:
        threads = str(deployment.threads or _confined() or "default: one for each physical core, spinning between calls")
        super().__init__(deployment, {"provider": CPU[0], "threads": threads})
        self._session, self._inputs, self._outputs, self._traced = session, _inputs(session), _outputs(session), traces is not None
        if traces is not None:
            weakref.finalize(self, shutil.rmtree, traces, True)

    def bind(self, inputs: Feeds) -> Bound:
        feed, outputs = by_name(inputs, self._inputs), list[Array]()

        def call() -> None:
            outputs[:] = self._session.run(self._outputs, feed)

        return Bound(call, lambda: dict(zip(self._outputs, outputs, strict=True)), lambda more: feed.update(by_name(more, self._inputs)))

    def layer_times(self) -> Trace:
        """Each operation lasts from its start to the start of the next one."""
        if not self._traced:
            return super().layer_times()
        return _trace(json.loads(Path(self._session.end_profiling()).read_text()))


def _trace(events: list[dict[str, Any]]) -> Trace:
    runs: list[list[dict[str, Any]]] = []
    # In whole microseconds a run may begin with its first node, which the file has first.
    for event in sorted((e for e in events if e.get("cat") in ("Node", "Session")), key=lambda e: (e["ts"], e["name"] != "model_run")):
        if event["name"] == "model_run":
            runs.append([])
        elif runs and event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            runs[-1].append(event)
    runs = [run for run in runs if run]
    ends = [[*(e["ts"] for e in run[1:]), run[-1]["ts"] + run[-1]["dur"]] for run in runs]
    return Trace(
        tuple(e["name"].removesuffix("_kernel_time") for e in runs[0]),
        tuple(e["args"].get("op_name") in PRODUCTS for e in runs[0]),
        np.array([[end - e["ts"] for e, end in zip(run, stops, strict=True)] for run, stops in zip(runs, ends, strict=True)], np.float64),
    )


class Replayed(Session):
    """A session of fixed shapes whose CUDA graph reads and writes the same device memory on every call.

    All that is bound to it shares that memory, also between threads: what was bound last finds its inputs there, and any other puts its
    own back before it runs.
    """

    thread_safe = False

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        deployment: Deployment,
        settings: Mapping[str, str],
        wait: bool = True,
        at: str = "cuda",
    ) -> None:
        import onnxruntime

        super().__init__(deployment, {"provider": session.get_providers()[0], **settings})
        for end in (*session.get_inputs(), *session.get_outputs()):
            if not all(isinstance(size, int) for size in end.shape):
                raise Unavailable(
                    f"CUDA graphs need fixed shapes, and {end.name} {end.shape} has others than the batch; "
                    "export the network with only its first dimension dynamic"
                )
        self._session, self._binding, self._wait = session, session.io_binding(), wait
        self._x, self._y = ({end.name: _place(end, at) for end in ends} for ends in (session.get_inputs(), session.get_outputs()))
        for name, value in self._x.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._y.items():
            self._binding.bind_ortvalue_output(name, value)
        self._options = onnxruntime.RunOptions()
        if not wait:
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._lock = threading.Lock()
        self._there: object = None  # whose inputs are in x
        self._answered: object = None  # whose outputs are in y

    @property
    def dtype(self) -> str:
        return _devices.onnxruntime_dtype(self.deployment.device)

    def bind(self, inputs: Feeds) -> Bound:
        own: list[dict[str, Array]] = []

        def write(more: Feeds) -> None:
            own[:] = [{name: np.array(array, order="C") for name, array in by_name(more, list(self._x)).items()}]
            with self._lock:
                self._put(own[0])

        write(inputs)
        return Bound(lambda: self._call(own[0]), lambda: self._read(own[0]), write)

    def _call(self, inputs: dict[str, Array]) -> None:
        with self._lock:
            self._run(inputs)

    def _read(self, inputs: dict[str, Array]) -> dict[str, Array]:
        with self._lock:
            if self._answered is not inputs:
                self._run(inputs)
            return {name: value.numpy() for name, value in self._y.items()}

    def _run(self, inputs: dict[str, Array]) -> None:
        self._put(inputs)
        self._answered = None
        self._session.run_with_iobinding(self._binding, self._options)
        if self._wait:
            self._binding.synchronize_outputs()
        self._answered = inputs

    def _put(self, inputs: dict[str, Array]) -> None:
        if self._there is not inputs:
            for name, array in inputs.items():
                self._x[name].update_inplace(array)
            self._there = inputs


def _place(end: Any, at: str) -> Any:
    """Memory for one input or output."""
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_shape_and_type(end.shape, _NUMPY[end.type.removeprefix("tensor(").removesuffix(")")], at)
