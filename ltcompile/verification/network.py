"""An ONNX file as data, and sessions of ONNX Runtime that run it.

What is guarded: weights in other files and operators that are not ONNX's own are refused before a session sees the file, no library of
operators is ever registered, and what was examined is what runs, since both are the same bytes. What is not: ONNX Runtime parses the file
in this process, and a graph of allowed operators may ask for any amount of time and memory. Give a file that you do not trust a container.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcompile.core.fields import short
from ltcompile.core.network_file import NetworkFile, described
from ltcompile.core.tensors import check_is_file
from ltcompile.errors import BadFile, Unavailable
from ltcompile.verification.wire import check_self_contained

Array = NDArray[np.float32]
CUDA = "CUDAExecutionProvider"
PROVIDERS: dict[str, list[Any]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": [(CUDA, {"prefer_nhwc": "1", "enable_cuda_graph": "1"})],
}
MOST_BYTES = 1 << 31  # of a protobuf message
MOST_IMAGE_BYTES = 1 << 30  # of one batch
CHUNK = 64  # images at once where nothing is timed
ERRORS, NOTHING = 3, 4  # what is logged


@dataclass(frozen=True)
class Bound:
    """A network on a device: `load` gives it as many images as before, `call` computes, `answer` is what it computed at last."""

    load: Callable[[Array], object]
    call: Callable[[], object]
    answer: Callable[[], Array]


@dataclass(frozen=True, eq=False)
class Network:
    """A file that loads: `metadata` is what it tells of itself, `shape` (C, H, W) that of an image.

    `batch` is the number of images that it takes, or what it calls that number where any will do.
    """

    path: Path
    data: bytes
    metadata: dict[str, str]
    shape: tuple[int, int, int]
    batch: int | str | None
    classes: int
    session: Any  # on the CPU

    @cached_property
    def file(self) -> NetworkFile:
        return described(self.path.name, self.data, self.metadata)

    @property
    def precision(self) -> str:
        return self.file.precision

    def noise(self, count: int) -> Array:
        """Seeded images (count, C, H, W). Raises Unavailable where they take more than a GiB."""
        if (needed := 4 * count * math.prod(self.shape)) > MOST_IMAGE_BYTES:
            raise Unavailable(f"a batch of {count:,} images takes {needed:,} bytes")
        return np.random.default_rng(0).standard_normal((count, *self.shape), dtype=np.float32)

    def bind(self, device: str, images: Array) -> Bound:
        """The network on `device`, with `images` (N, C, H, W) given to it, and run once.

        Raises:
            Unavailable: ONNX Runtime cannot run it there, or not so many images.
        """
        if isinstance(self.batch, int) and self.batch != len(images):
            raise Unavailable(f"{self.path.name} takes {self.batch} images at once, not {len(images)}")
        try:
            bound = self._on_gpu(len(images)) if device == "cuda" else self._on_cpu()
            bound.load(images)
            bound.call()
        except Unavailable:
            raise
        except Exception as error:  # ONNX Runtime raises its own types
            raise Unavailable(f"ONNX Runtime cannot run {self.path.name} on {device} with {len(images)} images: {_told(error)}") from error
        if (got := bound.answer().shape) != (len(images), self.classes):
            raise Unavailable(f"{self.path.name} gives logits {got} for {len(images)} images, and declares {self.classes} classes")
        return bound

    def logits(self, device: str, images: Array) -> Array:
        """The answers (N, classes) to images (N, C, H, W), in chunks of one size; the last one is filled up. Raises Unavailable."""
        chunk = self.batch if isinstance(self.batch, int) else min(CHUNK, len(images))
        bound = self.bind(device, _filled(images[:chunk], chunk))
        answers = []
        for start in range(0, len(images), chunk):
            bound.load(_filled(images[start : start + chunk], chunk))
            bound.call()
            answers.append(bound.answer())
        return np.concatenate(answers)[: len(images)]

    def _on_cpu(self) -> Bound:
        feed: dict[str, Array] = {}
        answers: list[Array] = []
        source, target = _names(self.session)

        def call() -> None:
            answers[:] = self.session.run([target], feed)

        return Bound(lambda images: feed.update({source: images}), call, lambda: answers[0])

    def _on_gpu(self, count: int) -> Bound:
        """A CUDA graph that reads and writes the same device memory on every call: what `ltcompile bench` times too."""
        from onnxruntime import OrtValue

        session = _session(self.data, "cuda", {self.batch: count} if isinstance(self.batch, str) else {})
        source, target = _names(session)
        binding = session.io_binding()
        x = OrtValue.ortvalue_from_shape_and_type([count, *self.shape], np.float32, "cuda")
        y = OrtValue.ortvalue_from_shape_and_type([count, self.classes], np.float32, "cuda")
        binding.bind_ortvalue_input(source, x)
        binding.bind_ortvalue_output(target, y)

        def call() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return Bound(x.update_inplace, call, y.numpy)


def open_network(path: Path) -> Network:
    """The network in an ONNX file that takes images (N, C, H, W) and gives logits (N, classes).

    Raises:
        BadFile: it is missing, no such file, or reaches for what is not in it.
    """
    check_is_file(path, "ONNX file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise BadFile(f"{path} has {size:,} bytes, more than an ONNX file can have; export it anew")
    data = path.read_bytes()
    check_self_contained(data, path)
    try:
        session = _session(data, "cpu")
        metadata = dict(session.get_modelmeta().custom_metadata_map)
        ends = [(end.type, list(end.shape)) for end in (*session.get_inputs(), *session.get_outputs())]
    except Unavailable:
        raise
    except Exception as error:  # ONNX Runtime raises its own types
        raise BadFile(f"ONNX Runtime cannot load {path}: {_told(error)}; export it anew, or update onnxruntime") from error
    match ends:
        case [("tensor(float)", [batch, int() as c, int() as h, int() as w]), ("tensor(float)", [_, int() as classes])]:
            if min(c, h, w, classes, batch if isinstance(batch, int) else 1) > 0:
                return Network(path, data, metadata, (c, h, w), batch, classes, session)
    raise BadFile(
        f"{path} does not turn images (N, C, H, W) into logits (N, classes), but has {short(ends)}; take a file of `ltcompile shrink`"
    )


def missing(device: str) -> str | None:
    """Why ONNX Runtime cannot run on `device` here, or None."""
    import onnxruntime

    if device not in PROVIDERS:
        return f"nothing is known of a device {short(device)}"
    if device == "cuda" and CUDA not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no {CUDA}"
    return "this machine has no NVIDIA GPU" if device == "cuda" and gpu_name() is None else None


def gpu_name() -> str | None:
    """What the first NVIDIA GPU calls itself, by its driver on Linux."""
    for told in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in told.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    return None


def _session(data: bytes, device: str, sizes: dict[str, int] | None = None) -> Any:
    """A session on `device` alone; `sizes` fixes dimensions that are open. Raises Unavailable, and what ONNX Runtime does."""
    try:
        import onnxruntime
    except ImportError as error:
        raise Unavailable(f"onnxruntime does not load ({error}); pip install onnxruntime, or onnxruntime-gpu") from error

    options = onnxruntime.SessionOptions()
    options.log_severity_level = NOTHING if device == "cpu" else ERRORS
    options.add_session_config_entry("session.load_model_format", "ONNX")
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    if device == "cuda":
        onnxruntime.preload_dlls()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = onnxruntime.InferenceSession(data, options, providers=PROVIDERS[device], enable_fallback=0)
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise Unavailable("ONNX Runtime's CUDA libraries do not load; its log above says why")
    return session


def _names(session: Any) -> tuple[str, str]:
    return session.get_inputs()[0].name, session.get_outputs()[0].name


def _filled(images: Array, count: int) -> Array:
    return images[np.arange(count) % len(images)]


def _told(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
