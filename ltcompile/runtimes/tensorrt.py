"""TensorRT, through ONNX Runtime's provider: an engine and a CUDA graph for each batch size. Reads the ONNX file."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import re
from pathlib import Path

from ltcompile.runtimes import _ort
from ltcompile.runtimes._base import Artifact, Subject

PROVIDERS: _ort.Providers = [("TensorrtExecutionProvider", {"trt_cuda_graph_enable": "1"}), ("CUDAExecutionProvider", {})]


def unavailable(device: str) -> str | None:
    """Why TensorRT cannot run on `device`, or None."""
    if device == "cpu":
        return "TensorRT runs on NVIDIA GPUs only; use the device cuda"
    return _ort.missing(device, PROVIDERS[0][0]) or _missing_library()


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


def compile(subject: Subject, device: str) -> Artifact:
    """The ONNX file through TensorRT; an engine is built when a batch size is first bound, which can take minutes.

    Raises:
        Unavailable: the subject has no ONNX file, TensorRT does not load or leaves a node to the CPU, or the file cannot
            be run.
    """
    return _ort.on_gpu("tensorrt", subject, device, PROVIDERS)
