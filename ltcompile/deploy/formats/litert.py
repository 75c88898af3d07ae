"""TensorFlow Lite, for LiteRT: OUTPUT.tflite, for one row; converted in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ltcompile.deploy.formats._converted import check_batch_alone, in_venv, read_by, write_from_program
from ltcompile.deploy.job import ShrinkJob
from ltcompile.lower.answers import Run
from ltcompile.pruned import Pruned
from ltcompile.runtimes.litert import READS, VENV

SUFFIX = READS
PRECISIONS = ("fp32",)
RUNTIME = "litert"
CONVERT = """
import sys, litert_torch, torch
program = torch.export.load(sys.argv[1])
args, kwargs = program.example_inputs
litert_torch.convert(program.module(), args, sample_kwargs=kwargs or None).export(sys.argv[2])
"""


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Raises InvalidModel where the network cannot be exported or converted, InvalidSetting where more than the batch varies."""
    check_batch_alone(job)
    write_from_program(network, pruned, job, convert)


def convert(program: Path, output: Path) -> None:
    in_venv(VENV, CONVERT, program, output)


def reader(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> Run:
    return read_by(RUNTIME, network, pruned, job)
