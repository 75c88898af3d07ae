"""ExecuTorch with XNNPACK: OUTPUT.pte, for one row; converted in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ltcompile.deploy.formats._converted import check_batch_alone, in_venv, read_by, write_from_program
from ltcompile.deploy.job import ShrinkJob
from ltcompile.lower.answers import Run
from ltcompile.pruned import Pruned
from ltcompile.runtimes.executorch import READS, VENV

SUFFIX = READS
PRECISIONS = ("fp32",)
RUNTIME = "executorch"
CONVERT = """
import sys, torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
made = to_edge_transform_and_lower(torch.export.load(sys.argv[1]), partitioner=[XnnpackPartitioner()]).to_executorch()
open(sys.argv[2], "wb").write(made.buffer)
"""


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Raises InvalidModel where the network cannot be exported or converted, InvalidSetting where more than the batch varies."""
    check_batch_alone(job)
    write_from_program(network, pruned, job, convert)


def convert(program: Path, output: Path) -> None:
    in_venv(VENV, CONVERT, program, output)


def reader(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> Run:
    return read_by(RUNTIME, network, pruned, job)
