"""What ONNX Runtime's providers share: sessions that never fall back in silence, and replayed CUDA graphs on GPUs."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ltcompile.errors import Unavailable
from ltcompile.runtimes import _devices
from ltcompile.runtimes._base import Array, Artifact, Bound, Subject, first_line

if TYPE_CHECKING:
    import onnxruntime

Providers = list[tuple[str, dict[str, str]]]
CPU = "CPUExecutionProvider"


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


def open_session(file: Path, providers: Providers, batch: int | None = None) -> onnxruntime.InferenceSession:
    """A session on the first of `providers`, with every node on one of them; `batch` fixes the dynamic first dimension.

    Raises:
        Unavailable: the provider does not load, leaves a node to the CPU, or cannot read the file.
    """
    import onnxruntime

    wanted = providers[0][0]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if batch is not None and (dimension := _batch_dimension(file)):
        options.add_free_dimension_override_by_name(dimension, batch)
    if wanted != CPU:
        onnxruntime.preload_dlls()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers, enable_fallback=0)
    except Exception as error:
        raise Unavailable(
            f"ONNX Runtime's {wanted} cannot run {file}: {first_line(error)}; its log above may say more, or use another backend"
        ) from error
    if (got := session.get_providers()[0]) != wanted:
        raise Unavailable(
            f"ONNX Runtime fell back from {wanted} to {got} for {file}: its libraries did not load (its log "
            "above says why); install the CUDA and cuDNN versions that this onnxruntime was built for"
        )
    return session


def _batch_dimension(file: Path) -> str:
    """The name of the input's first dimension, "" where it is fixed."""
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    return str(graph.input[0].type.tensor_type.shape.dim[0].dim_param)


def on_gpu(backend: str, subject: Subject, device: str, providers: Providers) -> Artifact:
    """The subject on a GPU: one session, one pair of device buffers and one CUDA graph for each batch size.

    A session for batch size 1 is opened at once, so that a missing library shows here.

    Raises:
        Unavailable: the subject has no ONNX file, or `open_session` refuses it.
    """
    file = subject.need_onnx(backend)

    @functools.cache
    def replay(batch: int) -> _Replay:
        return _Replay(open_session(file, providers, batch), device)

    def bind(images: Array) -> Bound:
        return replay(len(images)).bind(images)

    details = {"provider": providers[0][0], **{key: value for _, options in providers for key, value in options.items()}}
    replay(1)
    return Artifact(backend, device, _devices.onnxruntime_dtype(device), details, bind)


class _Replay:
    """A session of fixed shape whose CUDA graph reads and writes the same device memory on every call.

    All that is bound to it shares that memory, also between threads: what was bound last finds its images there, and any other puts its
    own back before it runs.
    """

    def __init__(self, session: onnxruntime.InferenceSession, device: str) -> None:
        from onnxruntime import OrtValue

        source, target = session.get_inputs()[0], session.get_outputs()[0]
        if not all(isinstance(size, int) for size in [*source.shape, *target.shape]):
            raise Unavailable(
                f"CUDA graphs need fixed shapes, and {source.name} {source.shape} -> {target.name} {target.shape} "
                "has others than the batch; export the network with only its first dimension dynamic"
            )
        self._session, self._binding = session, session.io_binding()
        self._x = OrtValue.ortvalue_from_shape_and_type(source.shape, np.float32, device)
        self._y = OrtValue.ortvalue_from_shape_and_type(target.shape, np.float32, device)
        self._binding.bind_ortvalue_input(source.name, self._x)
        self._binding.bind_ortvalue_output(target.name, self._y)
        self._lock = threading.Lock()
        self._there: Array | None = None  # the images in x
        self._answered: Array | None = None  # those whose answers are in y

    def bind(self, images: Array) -> Bound:
        own = np.array(images, order="C")
        with self._lock:
            self._place(own)
        return Bound(lambda: self._call(own), lambda: self._read(own))

    def _call(self, images: Array) -> None:
        with self._lock:
            self._run(images)

    def _read(self, images: Array) -> Array:
        with self._lock:
            if self._answered is not images:
                self._run(images)
            answer: Array = self._y.numpy()
            return answer

    def _run(self, images: Array) -> None:
        self._place(images)
        self._answered = None
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        self._answered = images

    def _place(self, images: Array) -> None:
        if self._there is not images:
            self._x.update_inplace(images)
            self._there = images
