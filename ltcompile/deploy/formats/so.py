"""A shared library for this processor, for ctypes, cgo and the like, with its C header NAME.h; large weights are in NAME.bin."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from ltcompile.deploy.formats._generated import files, generated, of_library, write_weights
from ltcompile.deploy.job import ShrinkJob
from ltcompile.engine.cpu import native
from ltcompile.lower.answers import Run
from ltcompile.lower.program import Program
from ltcompile.paths import write_bytes, write_text
from ltcompile.pruned import Pruned

__all__ = ["files"]

SUFFIX, COMPANIONS = ".so", (".h", ".bin")
PRECISIONS = ("fp32", "bf16", "int8")


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Raises InvalidModel where no C++ can be generated of the network, InvalidSetting where more than the batch varies, Unavailable where
    there is no compiler.
    """
    write_program(None, network, pruned, job)


def write_program(integers: Program | None, network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Write the network's program on integers, or the network where there is none. Raises as `write` does."""
    unit, source, header = generated(network, pruned, job, integers)
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        (path := Path(folder) / "network.cpp").write_text(source)
        native.compile_to(path, made := Path(folder) / "network.so", (*native.FLAGS, *native.SHARED))
        write_weights(unit, job)
        write_text(job.output.with_suffix(".h"), header)
        write_bytes(job.output, made.read_bytes())


def reader(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> Run:
    return of_library(job.output, job)
