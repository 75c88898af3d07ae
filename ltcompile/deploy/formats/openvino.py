"""OpenVINO IR: OUTPUT.xml and OUTPUT.bin, with the ONNX file's metadata in its runtime information; int8 as the ONNX file holds it."""

from __future__ import annotations

from torch import nn

from ltcompile.deploy.formats._converted import read_by, write_from_onnx
from ltcompile.deploy.job import ShrinkJob
from ltcompile.lower.answers import Run
from ltcompile.pruned import Pruned
from ltcompile.runtimes.openvino import READS, convert

SUFFIX, COMPANIONS = READS, (".bin",)
RUNTIME = "openvino"


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Raises InvalidModel where the network cannot be exported or converted, Disagreement where the ONNX file computes something else."""
    write_from_onnx(network, pruned, job, convert)


def reader(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> Run:
    return read_by(RUNTIME, network, pruned, job)
