"""ONNX, for any batch; the axes of `job.dynamic` vary."""

from __future__ import annotations

from torch import nn

from ltcompile.deploy.formats import metadata
from ltcompile.deploy.job import ShrinkJob
from ltcompile.lower.answers import Run, of_file
from ltcompile.lower.export import export_onnx
from ltcompile.lower.inputs import Inputs
from ltcompile.pruned import Pruned

SUFFIX = ".onnx"
RUNTIME = "onnxruntime"


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Raises InvalidModel where torch cannot export the network, Disagreement where the file computes something else."""
    export_onnx(
        network,
        pruned.example,
        job.output,
        metadata(pruned, job),
        input_names=pruned.input_names,
        output_names=pruned.output_names,
        dynamic=job.dynamic,
    )


def reader(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> Run:
    return of_file(job.output, pruned.input_names or Inputs.of(pruned.small, pruned.example).names)
