"""Core ML: the folder OUTPUT.mlpackage, an ML program for one row; written and checked for its structure here, run on macOS and iOS alone."""

from __future__ import annotations

import json

from torch import nn

from ltcompile.deploy.formats._converted import check_batch_alone, write_from_program
from ltcompile.deploy.job import ShrinkJob
from ltcompile.errors import Disagreement
from ltcompile.lower.inputs import Inputs
from ltcompile.pruned import Pruned
from ltcompile.runtimes import _venvs
from ltcompile.runtimes._convert import run

SUFFIX = ".mlpackage"
PRECISIONS = ("fp32", "fp16")
VENV = "coreml"
NOT_RUN = "Core ML runs on macOS and iOS alone; inputs, outputs and the size of weights were checked"
CONVERT = """
import sys, coremltools as ct, torch
program = torch.export.load(sys.argv[1]).run_decompositions({})
precision = ct.precision.FLOAT16 if sys.argv[3] == "fp16" else ct.precision.FLOAT32
target = ct.target.iOS16
ct.convert(program, convert_to="mlprogram", minimum_deployment_target=target, compute_precision=precision).save(sys.argv[2])
"""
READ = """
import sys, json, coremltools as ct
spec = ct.models.MLModel(sys.argv[1], skip_model_load=True).get_spec()
shapes = [list(end.type.multiArrayType.shape) for end in spec.description.input]
print(json.dumps({"inputs": shapes, "outputs": len(spec.description.output), "kind": spec.WhichOneof("Type")}))
"""


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Raises InvalidModel where the network cannot be exported or converted, InvalidSetting where more than the batch varies."""
    check_batch_alone(job)
    write_from_program(pruned.small, pruned, job, CONVERT, job.precision)


def check_structure(pruned: Pruned, job: ShrinkJob) -> str:
    """What was checked instead of answers. Raises Disagreement where the package is not the network's."""
    found = json.loads(run([_venvs.need(VENV), "-P", "-c", READ, job.output], job.output.name).splitlines()[-1])
    expected = [list(tensor.shape) for tensor in Inputs.of(pruned.small, pruned.example).resized(1).tensors]
    weights = sum(file.stat().st_size for file in job.output.rglob("weight.bin"))
    least = (2 if job.precision == "fp16" else 4) * sum(p.numel() for p in pruned.small.parameters() if p.dim() > 1)
    if found["inputs"] != expected or found["kind"] != "mlProgram" or not 0.9 * least <= weights <= 1.5 * least + (1 << 16):
        raise Disagreement(
            f"{job.output} is not the network: it takes {found['inputs']} and holds {weights:,} bytes of weights, and {expected} and about "
            f"{least:,} are expected; please report this network"
        )
    return NOT_RUN
