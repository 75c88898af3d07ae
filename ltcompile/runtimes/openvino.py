"""OpenVINO on the CPU, with its latency hint, in fp32 also where it would take bf16. Reads the ONNX file."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ltcompile.errors import Unavailable
from ltcompile.runtimes import _devices
from ltcompile.runtimes._base import Array, Artifact, Bound, Subject, first_line
from ltcompile.runtimes._process import openvino_core

SETTINGS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


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


def compile(subject: Subject, device: str) -> Artifact:
    """The ONNX file in OpenVINO; each input shape is compiled when it is first bound.

    Raises:
        Unavailable: the subject has no ONNX file, or OpenVINO cannot compile it.
    """
    import openvino

    file = subject.need_onnx("openvino")
    core = openvino_core()

    @functools.cache
    def compiled(shape: tuple[int, ...]) -> Any:
        try:
            network = core.read_model(file)
            network.reshape(list(shape))
            return core.compile_model(network, "CPU", SETTINGS)
        except RuntimeError as error:
            raise Unavailable(f"OpenVINO cannot compile {file}: {first_line(error)}; use another backend") from error

    def bind(images: Array) -> Bound:
        request = compiled(images.shape).create_infer_request()
        request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(images)))
        return Bound(request.infer, lambda: np.array(request.get_output_tensor().data))

    return Artifact("openvino", device, "float32", {**SETTINGS, "threads": "default"}, bind)
