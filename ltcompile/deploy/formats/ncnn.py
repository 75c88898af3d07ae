"""ncnn: OUTPUT.param and OUTPUT.bin, for one row; fp16 is that of weights."""

from __future__ import annotations

from torch import nn

from ltcompile.deploy.formats._converted import check_batch_alone, read_by, write_from_onnx
from ltcompile.deploy.job import ShrinkJob
from ltcompile.lower.answers import Run
from ltcompile.pruned import Pruned
from ltcompile.runtimes.ncnn import READS, convert

SUFFIX, COMPANIONS = READS, (".bin",)
PRECISIONS = ("fp32", "fp16")
RUNTIME = "ncnn"


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Raises InvalidModel where the network cannot be exported or converted, InvalidSetting where more than the batch varies."""
    check_batch_alone(job)
    write_from_onnx(pruned.small, pruned, job, convert)


def reader(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> Run:
    return read_by(RUNTIME, network, pruned, job)
