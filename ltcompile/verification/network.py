"""An ONNX file as data, and sessions of ONNX Runtime that run it.

Guarded: weights in other files and operators that are not ONNX's own are refused before a session gets the file; no library of operators is
registered; the bytes that were examined are the bytes that run. Not guarded: ONNX Runtime parses the file in this process, and a graph of
allowed operators may use any amount of time and memory. Run files that you do not trust in a container.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltcompile.core.deployment import Deployment
from ltcompile.core.fields import short
from ltcompile.core.network_file import NetworkFile, described
from ltcompile.core.tensors import check_is_file
from ltcompile.errors import InvalidFile, Unavailable
from ltcompile.runtimes import Bound, Session
from ltcompile.runtimes._ort import CPU, CUDA, ERRORS, NOTHING, OnCpu, Replayed, open_session
from ltcompile.verification.wire import check_self_contained

Array = NDArray[np.float32]
PROVIDERS = {"cpu": CPU, "cuda": CUDA}
LOGGED = {"cpu": NOTHING, "cuda": ERRORS}
MOST_BYTES = 1 << 31  # of a protobuf message
MOST_IMAGE_BYTES = 1 << 30  # of one batch
CHUNK = 64  # images at once where nothing is timed


@dataclass(frozen=True, eq=False)
class Network:
    """An ONNX file that loads, with its `metadata` and the `shape` (C, H, W) of an image.

    `batch` is the fixed number of images, or the name of that dimension if it is dynamic.
    """

    path: Path
    data: bytes
    metadata: dict[str, str]
    shape: tuple[int, int, int]
    batch: int | str | None
    classes: int

    @cached_property
    def file(self) -> NetworkFile:
        return described(self.path.name, self.data, self.metadata)

    @property
    def precision(self) -> str:
        return self.file.precision

    def noise(self, count: int) -> Array:
        """Seeded images (count, C, H, W). Raises Unavailable if they take more than a GiB."""
        if (needed := 4 * count * math.prod(self.shape)) > MOST_IMAGE_BYTES:
            raise Unavailable(f"a batch of {count:,} images takes {needed:,} bytes")
        return np.random.default_rng(0).standard_normal((count, *self.shape), dtype=np.float32)

    def bind(self, device: str, images: Array) -> Bound:
        """The network on `device`, bound to `images` (N, C, H, W), after one run.

        Raises:
            Unavailable: ONNX Runtime cannot run it there, or not on this number of images.
        """
        if isinstance(self.batch, int) and self.batch != len(images):
            raise Unavailable(f"{self.path.name} takes {self.batch} images at once, not {len(images)}")
        try:
            bound = self._open(device, len(images)).bind(images)
            bound.call()
            got = logits_of(bound).shape
        except Unavailable:
            raise
        except Exception as error:  # ONNX Runtime raises its own types
            raise Unavailable(
                f"ONNX Runtime cannot run {self.path.name} on {device} with {len(images)} images: {_first_line(error)}"
            ) from error
        if got != (len(images), self.classes):
            raise Unavailable(f"{self.path.name} gives logits {got} for {len(images)} images, and declares {self.classes} classes")
        return bound

    def logits(self, device: str, images: Array) -> Array:
        """The answers (N, classes) to images (N, C, H, W), in chunks of one size; the last one is filled up. Raises Unavailable."""
        chunk = self.batch if isinstance(self.batch, int) else min(CHUNK, len(images))
        bound = self.bind(device, _filled(images[:chunk], chunk))
        answers = []
        for start in range(0, len(images), chunk):
            bound.write(_filled(images[start : start + chunk], chunk))
            bound.call()
            answers.append(logits_of(bound))
        return np.concatenate(answers)[: len(images)]

    def _open(self, device: str, count: int) -> Session:
        """For `count` images at once, as `ltcompile bench` opens it too; without PyTorch."""
        provider = PROVIDERS[device]
        session = open_session(self.data, [provider], {self.batch: count} if isinstance(self.batch, str) else {}, log=LOGGED[device])
        deployment = Deployment(device, "onnxruntime", count)
        return OnCpu(session, deployment) if device == "cpu" else Replayed(session, deployment, provider[1])


def open_network(path: Path) -> Network:
    """The network in an ONNX file that takes images (N, C, H, W) and gives logits (N, classes).

    Raises:
        InvalidFile: it is missing, not such a file, or refers to other files or operators.
    """
    check_is_file(path, "ONNX file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise InvalidFile(f"{path} has {size:,} bytes, more than an ONNX file can have; export it again")
    data = path.read_bytes()
    check_self_contained(data, path)
    try:
        session = open_session(data, log=NOTHING)
        metadata = dict(session.get_modelmeta().custom_metadata_map)
        ends = [(end.type, list(end.shape)) for end in (*session.get_inputs(), *session.get_outputs())]
    except Exception as error:  # ONNX Runtime raises its own types
        if isinstance(error, Unavailable) and isinstance(error.__cause__, ImportError):
            raise
        raise InvalidFile(
            f"ONNX Runtime cannot load {path}: {_first_line(error.__cause__ or error)}; export it again, or update onnxruntime"
        ) from error
    match ends:
        case [("tensor(float)", [batch, int() as c, int() as h, int() as w]), ("tensor(float)", [_, int() as classes])]:
            if min(c, h, w, classes, batch if isinstance(batch, int) else 1) > 0:
                return Network(path, data, metadata, (c, h, w), batch, classes)
    raise InvalidFile(
        f"{path} does not turn images (N, C, H, W) into logits (N, classes), but has {short(ends)}; use a file of `ltcompile shrink`"
    )


def missing(device: str) -> str | None:
    """Why ONNX Runtime cannot run on `device` here, or None."""
    import onnxruntime

    if device not in PROVIDERS:
        return f"unknown device {short(device)}"
    if device == "cuda" and CUDA[0] not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no {CUDA[0]}"
    return "this machine has no NVIDIA GPU" if device == "cuda" and gpu_name() is None else None


def gpu_name() -> str | None:
    """The name of the first NVIDIA GPU by its driver on Linux, or None."""
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    return None


def logits_of(bound: Bound) -> Array:
    """The answers of the last call."""
    return next(iter(bound.read().values()))


def _filled(images: Array, count: int) -> Array:
    return images[np.arange(count) % len(images)]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
