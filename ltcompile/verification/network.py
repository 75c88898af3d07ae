"""An ONNX file as data, and sessions of ONNX Runtime, or another runtime that reads it, that run it.

Guarded: weights in other files and operators that are not ONNX's own are refused before a session gets the file; no library of operators is
registered; the bytes that were examined are the bytes that run; on a CPU a runtime runs in a process of its own, whose end is an error here.
Not guarded: that process has the rights of this one, and a graph of allowed operators may use any amount of time and memory. Run files that you
do not trust in a container.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcompile.core.deployment import Deployment
from ltcompile.core.fields import short
from ltcompile.core.network_file import NetworkFile, described
from ltcompile.core.tensors import check_is_file
from ltcompile.errors import Crashed, InvalidFile, Unavailable
from ltcompile.runtimes import Bound, Options, Session, Subject, load_apart, shared
from ltcompile.runtimes._ort import CUDA, Replayed, open_session
from ltcompile.verification.wire import check_self_contained

Array = NDArray[np.float32]
Feed = dict[str, NDArray[Any]]
TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(bool)": np.bool_}
TYPES |= {f"tensor({kind}{bits})": getattr(np, f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
DEVICES = ("cpu", "cuda")
MOST_BYTES = 1 << 31  # of a protobuf message
MOST_IMAGE_BYTES = 1 << 30  # of one batch
CHUNK = 64  # images at once where nothing is timed


@dataclass(frozen=True)
class Input:
    """An input of a file: its name, its dtype, and its sizes, of which those that vary have names."""

    name: str
    dtype: Any
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """An ONNX file that loads, with its `metadata`, `inputs` and the names of its `outputs`.

    `batch` is the fixed number of rows, or the name of that dimension if it is dynamic. Of a network that turns images (N, C, H, W) into
    logits (N, classes), `shape` is (C, H, W); others have neither.
    """

    path: Path
    data: bytes
    metadata: dict[str, str]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    batch: int | str | None
    shape: tuple[int, ...] | None = None
    classes: int | None = None
    runtime: str = "onnxruntime"

    @cached_property
    def file(self) -> NetworkFile:
        return described(self.path.name, self.data, self.metadata)

    @property
    def precision(self) -> str:
        return self.file.precision

    @property
    def checksum(self) -> str:
        """Of the ticket that it was made from, or else of the network; "" where it names neither."""
        return self.metadata.get("ticket_checksum") or self.metadata.get("network_checksum", "")

    @property
    def rows(self) -> int:
        """How many rows it takes at once, two where that is up to the caller."""
        return self.batch if isinstance(self.batch, int) else 2

    def noise(self, count: int, like: Feed | None = None) -> Feed:
        """Inputs of `count` rows: those of `like`, repeated, or else seeded noise. Raises Unavailable if they take more than a GiB, or a size
        that varies is not known."""
        rng, found = np.random.default_rng(0), Feed()
        for end in self.inputs:
            if like is not None:
                given, has = like[end.name], self._has_batch(end)
                found[end.name] = given[np.arange(count) % len(given)] if has else given
                continue
            sizes = (count, *end.shape[1:]) if self._has_batch(end) else end.shape
            if not all(isinstance(n, int) for n in sizes):
                raise Unavailable(
                    f"{end.name} of {self.path.name} has sizes that vary, {short(end.shape)}, and no recorded answers say which"
                )
            if (needed := np.dtype(end.dtype).itemsize * math.prod(sizes)) > MOST_IMAGE_BYTES:  # type: ignore[arg-type]
                raise Unavailable(f"a batch of {count:,} rows takes {needed:,} bytes")
            if np.issubdtype(end.dtype, np.floating):
                found[end.name] = rng.standard_normal(sizes, dtype=np.float32).astype(end.dtype)  # type: ignore[arg-type]
            else:
                found[end.name] = np.zeros(sizes, end.dtype)  # type: ignore[arg-type]
        return found

    def bind(self, device: str, feed: Feed) -> Bound:
        """The network on `device`, bound to inputs, after one run.

        Raises:
            Unavailable: ONNX Runtime cannot run it there, or not on this number of rows.
        """
        count = next((len(feed[end.name]) for end in self.inputs if self._has_batch(end)), 1)
        if isinstance(self.batch, int) and self.batch != count:
            raise Unavailable(f"{self.path.name} takes {self.batch} rows at once, not {count}")
        try:
            bound = self._open(device, count).bind(feed)
            bound.call()
            got = logits_of(bound).shape
        except Crashed:
            raise
        except Exception as error:  # ONNX Runtime raises its own types
            raise Unavailable(f"{self.runtime} cannot run {self.path.name} on {device} with {count} rows: {_first_line(error)}") from error
        if self.classes is not None and got != (count, self.classes):
            raise Unavailable(f"{self.path.name} gives logits {got} for {count} images, and declares {self.classes} classes")
        return bound

    def _has_batch(self, end: Input) -> bool:
        return bool(end.shape) and end.shape[0] == self.batch

    def logits(self, device: str, images: Array) -> Array:
        """The answers (N, classes) to images (N, C, H, W), in chunks of one size; the last one is filled up. Raises Unavailable."""
        chunk = self.batch if isinstance(self.batch, int) else min(CHUNK, len(images))
        name = self.inputs[0].name
        bound = self.bind(device, {name: _filled(images[:chunk], chunk)})
        answers = []
        for start in range(0, len(images), chunk):
            bound.write({name: _filled(images[start : start + chunk], chunk)})
            bound.call()
            answers.append(logits_of(bound))
        return np.concatenate(answers)[: len(images)]

    def _open(self, device: str, count: int) -> Session:
        """For `count` images at once, as `ltcompile bench` opens it too; without PyTorch."""
        deployment, sizes = Deployment(device, self.runtime, count), {self.batch: count} if isinstance(self.batch, str) else {}
        if device == "cpu":
            return load_apart(Subject(self.path.name, onnx=self.data), deployment, Options(sizes=sizes))
        return Replayed(open_session(self.data, [CUDA], sizes), deployment, CUDA[1])


def open_network(path: Path, runtime: str = "onnxruntime") -> Network:
    """The network in an ONNX file, for `runtime` to run.

    Raises:
        InvalidFile: it is missing, not such a file, refers to other files or operators, or takes something else than numbers.
    """
    check_is_file(path, "ONNX file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise InvalidFile(f"{path} has {size:,} bytes, more than an ONNX file can have; export it again")
    data = path.read_bytes()
    check_self_contained(data, path)
    try:
        metadata, inputs, outputs = shared().describe(data)
        ends = [(kind, shape) for _, kind, shape in (*inputs, *outputs)]
    except Unavailable as error:
        if find_spec("onnxruntime") is None:
            raise
        raise InvalidFile(f"ONNX Runtime cannot load {path}: {_first_line(error)}; export it again, or update onnxruntime") from error
    if not inputs or not outputs or not all(kind in TYPES for kind, _ in ends) or any(n == 0 for _, sizes in ends for n in sizes):
        raise InvalidFile(f"{path} does not turn tensors of numbers into others, but has {short(ends)}; use a file of `ltcompile shrink`")
    found = tuple(Input(name, TYPES[kind], tuple(shape)) for name, kind, shape in inputs)
    first = [end.shape[0] for end in found if end.shape]
    batch = next((n for n in first if isinstance(n, str)), first[0] if first else None)
    network = Network(path, data, metadata, found, tuple(name for name, *_ in outputs), batch, runtime=runtime)
    match ends:
        case [("tensor(float)", [_, int() as c, int() as h, int() as w]), ("tensor(float)", [_, int() as classes])]:
            return replace(network, shape=(c, h, w), classes=classes)
    return network


def missing(device: str) -> str | None:
    """Why ONNX Runtime cannot run on `device` here, or None."""
    import onnxruntime

    if device not in DEVICES:
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
