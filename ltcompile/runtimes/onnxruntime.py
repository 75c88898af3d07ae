"""ONNX Runtime, on the CPU or through its CUDA provider in NHWC with a CUDA graph. Reads the ONNX file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltcompile.runtimes import _ort
from ltcompile.runtimes._base import Options, Session, Subject

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment

ENGINE = {"fp32": "", "int8": "", "bf16": "its CPU provider computes bf16 as fp32"}
APART = READS_ONNX = THREADS = SLEEPS = True
TRACED = {"cpu": ("fp32", "int8")}
IMPORTS = ("onnx",)
PROVIDERS = {"cpu": _ort.CPU, "cuda": _ort.CUDA}


def unavailable(device: str) -> str | None:
    """Why ONNX Runtime cannot run on `device`, or None. That its CUDA libraries load shows first in `load`."""
    return _ort.missing(device, PROVIDERS.get(device, _ort.CPU)[0])


def load(subject: Subject, deployment: Deployment, options: Options) -> Session:
    """The ONNX file in a session.

    Raises:
        Unavailable: the subject has no ONNX file, the provider fell back to the CPU or left a node there, or the file cannot be run.
    """
    return _ort.load(subject, deployment, options, [PROVIDERS[deployment.device]])
