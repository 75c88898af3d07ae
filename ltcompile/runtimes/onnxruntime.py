"""ONNX Runtime, on the CPU or through its CUDA provider in NHWC with a CUDA graph. Reads the ONNX file."""

from __future__ import annotations

import numpy as np

from ltcompile.runtimes import _ort
from ltcompile.runtimes._base import Array, Artifact, Bound, Subject

CUDA: _ort.Providers = [("CUDAExecutionProvider", {"prefer_nhwc": "1", "enable_cuda_graph": "1"})]


def unavailable(device: str) -> str | None:
    """Why ONNX Runtime cannot run on `device`, or None. That its CUDA libraries load shows first in `compile`."""
    return _ort.missing(device, _ort.CPU if device == "cpu" else CUDA[0][0])


def compile(subject: Subject, device: str) -> Artifact:
    """The ONNX file in a session on `device`.

    Raises:
        Unavailable: the subject has no ONNX file, the provider fell back to the CPU or left a node there, or the file
            cannot be run.
    """
    return _ort.on_gpu("onnxruntime", subject, device, CUDA) if device == "cuda" else _on_cpu(subject)


def _on_cpu(subject: Subject) -> Artifact:
    session = _ort.open_session(subject.need_onnx("onnxruntime"), [(_ort.CPU, {})])
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name

    def bind(images: Array) -> Bound:
        feed = {source: np.ascontiguousarray(images)}
        answers: list[Array] = []

        def call() -> None:
            answers[:] = session.run([target], feed)

        return Bound(call, lambda: answers[0])

    details = {"provider": _ort.CPU, "threads": "default: one for each physical core, spinning between calls"}
    return Artifact("onnxruntime", "cpu", "float32", details, bind)
