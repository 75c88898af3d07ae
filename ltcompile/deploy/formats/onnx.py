"""ONNX, for any batch; the axes of `job.dynamic` vary."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import version_converter
from torch import nn

from ltcompile.core.onnx_file import read_onnx
from ltcompile.deploy.formats import metadata
from ltcompile.deploy.job import ShrinkJob
from ltcompile.errors import InvalidModel
from ltcompile.lower.answers import Run, of_file
from ltcompile.lower.export import export_onnx
from ltcompile.lower.inputs import Inputs
from ltcompile.paths import write_bytes
from ltcompile.pruned import Pruned

SUFFIX = ".onnx"
RUNTIME, ALSO_RUN_BY = "onnxruntime", ("tract",)


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
    if job.opset is not None:
        write_bytes(job.output, with_opset(job.output, job.opset))


def with_opset(path: Path, opset: int) -> bytes:
    """The file with the operators of another opset. Raises InvalidModel where one of them does not exist there."""
    model = read_onnx(path)
    for node in model.graph.node:  # a default that older opsets do not know
        kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes" or attribute.i]
        del node.attribute[:]
        node.attribute.extend(kept)
    try:
        converted = version_converter.convert_version(model, opset)
        onnx.checker.check_model(converted, full_check=True)
    except Exception as error:  # C++ errors of several types
        reason = " ".join(str(error).split()).rpartition(" failed: ")[2][:300]  # without the place in its source
        raise InvalidModel(
            f"{path} cannot be written in opset {opset}: {reason}; leave opset out, or take one nearer to the file's"
        ) from error
    onnx.helper.set_model_props(converted, {text.key: text.value for text in model.metadata_props})
    data: bytes = converted.SerializeToString()
    return data


def reader(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> Run:
    return of_file(job.output, pruned.input_names or Inputs.of(pruned.small, pruned.example).names)
