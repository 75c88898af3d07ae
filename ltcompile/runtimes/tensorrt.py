"""TensorRT, through ONNX Runtime's provider: an engine and a CUDA graph for each batch size. Reads the ONNX file."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ltcompile.runtimes import _ort
from ltcompile.runtimes._base import Options, Session, Subject

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment

READS_ONNX = True
TENSORRT = "TensorrtExecutionProvider"


def unavailable(device: str) -> str | None:
    """Why TensorRT cannot run on `device`, or None."""
    if device == "cpu":
        return "TensorRT runs on NVIDIA GPUs only; use the device cuda"
    return _ort.missing(device, TENSORRT) or _missing_library()


def _missing_library() -> str | None:
    """ONNX Runtime's provider says which libnvinfer it was built for; the tensorrt wheel brings it along and loads it."""
    import onnxruntime

    provider = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not provider.is_file():
        return f"there is no {provider.name} in this onnxruntime; TensorRT needs onnxruntime-gpu on Linux"
    library = re.search(rb"libnvinfer\.so\.(\d+)", provider.read_bytes())
    if library is None:
        return f"{provider.name} names no libnvinfer; reinstall onnxruntime-gpu"
    with contextlib.suppress(ImportError, OSError):
        importlib.import_module("tensorrt")
    try:
        ctypes.CDLL(library[0].decode(), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return f"TensorRT's libraries do not load ({error}); pip install 'tensorrt=={library[1].decode()}.*'"
    return None


def load(subject: Subject, deployment: Deployment, options: Options) -> Session:
    """The ONNX file through TensorRT; its engine is built by the first call, which can take minutes.

    Raises:
        Unavailable: the subject has no ONNX file, TensorRT does not load or leaves a node to the CPU, or the file cannot be run.
    """
    half = {"trt_fp16_enable": "1"} if deployment.precision == "fp16" else {}
    return _ort.load(subject, deployment, options, [(TENSORRT, {**half, "trt_cuda_graph_enable": "1"}), ("CUDAExecutionProvider", {})])
