"""Core ML: the folder OUTPUT.mlpackage, an ML program for one row; written and checked for its structure here, run on macOS and iOS alone."""

from __future__ import annotations

import json
import re

from torch import Tensor, nn

from ltcompile.deploy.formats._converted import check_batch_alone, names_of, write_from_program
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
import sys, json, coremltools as ct, numpy, torch
program, ends = torch.export.load(sys.argv[1]).run_decompositions({}), json.loads(sys.argv[4])
ct.convert(
    program,
    convert_to="mlprogram",
    minimum_deployment_target=ct.target.iOS16,
    compute_precision=ct.precision.FLOAT16 if sys.argv[3] == "fp16" else ct.precision.FLOAT32,
    inputs=[ct.TensorType(name, shape, getattr(numpy, dtype)) for name, dtype, shape in ends["inputs"]],
    outputs=[ct.TensorType(name) for name in ends["outputs"]],
).save(sys.argv[2])
"""
READ = """
import sys, json, coremltools as ct
spec = ct.models.MLModel(sys.argv[1], skip_model_load=True).get_spec()
shapes = {end.name: list(end.type.multiArrayType.shape) for end in spec.description.input}
print(json.dumps({"inputs": shapes, "outputs": [end.name for end in spec.description.output], "kind": spec.WhichOneof("Type")}))
"""


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Raises InvalidModel where the network cannot be exported or converted, InvalidSetting where more than the batch varies."""
    check_batch_alone(job)
    inputs, outputs = _ends(pruned)
    ends = {"inputs": [(name, str(x.dtype).removeprefix("torch."), [*x.shape]) for name, x in inputs.items()], "outputs": outputs}
    write_from_program(pruned.small, pruned, job, CONVERT, job.precision, json.dumps(ends))


def check_structure(pruned: Pruned, job: ShrinkJob) -> str:
    """What was checked instead of answers. Raises Disagreement where the package is not the network's."""
    found = json.loads(run([_venvs.need(VENV), "-P", "-c", READ, job.output], job.output.name).splitlines()[-1])
    inputs, outputs = _ends(pruned)
    expected = {"inputs": {name: list(x.shape) for name, x in inputs.items()}, "outputs": outputs, "kind": "mlProgram"}
    weights = sum(file.stat().st_size for file in job.output.rglob("weight.bin"))
    least = (2 if job.precision == "fp16" else 4) * sum(p.numel() for p in pruned.small.parameters() if p.dim() > 1)
    if found != expected or not 0.9 * least <= weights <= 1.5 * least + (1 << 16):
        raise Disagreement(
            f"{job.output} is not the network: it has {found} and {weights:,} bytes of weights, not {expected} and about {least:,}; please "
            "report this network"
        )
    return NOT_RUN


def _ends(pruned: Pruned) -> tuple[dict[str, Tensor], list[str]]:
    """The inputs of one row by name, and the names of the outputs, with _ for what Core ML writes no name with."""
    names, outputs = ([re.sub(r"\W", "_", name, flags=re.ASCII) for name in side] for side in names_of(pruned))
    return dict(zip(names, Inputs.of(pruned.small, pruned.example).resized(1).tensors, strict=True)), outputs
