"""A TensorRT engine: OUTPUT.plan, for up to 64 rows, for the GPU and the TensorRT of this machine alone."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from torch import nn

from ltcompile.deploy.formats._converted import check_batch_alone, read_by, write_from_onnx
from ltcompile.deploy.job import ShrinkJob
from ltcompile.errors import Unavailable
from ltcompile.lower.inputs import Inputs
from ltcompile.pruned import Pruned
from ltcompile.runtimes._convert import run
from ltcompile.runtimes.tensorrt_plan import READS

SUFFIX = READS
PRECISIONS = ("fp32", "fp16")  # as the ONNX file has it; int8 would need ranges around zero
RUNTIME, DEVICE = "tensorrt-plan", "cuda"
MOST_ROWS = 64
BUILD = """
import sys, tensorrt as trt
onnx, output, usual, most = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
log = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
if not parser.parse(open(onnx, "rb").read()):
    sys.exit("; ".join(str(parser.get_error(at)) for at in range(parser.num_errors)))
config, profile = builder.create_builder_config(), builder.create_optimization_profile()
config.clear_flag(trt.BuilderFlag.TF32)
for at in range(network.num_inputs):
    end = network.get_input(at)
    profile.set_shape(end.name, *((rows, *tuple(end.shape)[1:]) for rows in (1, usual, most)))
config.add_optimization_profile(profile)
made = builder.build_serialized_network(network, config)
if made is None:
    sys.exit("TensorRT builds no engine of this network")
open(output, "wb").write(made)
"""


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Raises InvalidModel where the network cannot be exported or built, InvalidSetting where more than the batch varies."""
    check_batch_alone(job)
    write_from_onnx(network, pruned, job, partial(build, rows=Inputs.of(pruned.small, pruned.example).batch))


def build(onnx: Path, output: Path, precision: str = "fp32", rows: int = 1) -> None:
    """Build an engine of an ONNX file, fastest for `rows` rows, in a process of its own. Raises Unavailable where TensorRT fails."""
    command: list[str | Path] = [sys.executable, "-P", "-c", BUILD, onnx, output]
    run([*command, str(min(rows, MOST_ROWS)), str(MOST_ROWS)], output.name)
    if not output.is_file():
        raise Unavailable(f"TensorRT writes no {output.name}; use another format")


reader = partial(read_by, RUNTIME)
