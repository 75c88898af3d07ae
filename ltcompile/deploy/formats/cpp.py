"""One C++17 file that needs libc alone, with its weights, or NAME.bin next to it where they have more than 8 MB."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from ltcompile.deploy.formats._generated import files, generated, of_library, write_weights
from ltcompile.deploy.job import ShrinkJob
from ltcompile.engine.cpu import native
from ltcompile.lower.answers import Run
from ltcompile.lower.program import Program
from ltcompile.paths import write_text
from ltcompile.pruned import Pruned

__all__ = ["files"]

SUFFIX, COMPANIONS = ".cpp", (".bin",)
PRECISIONS = ("fp32", "bf16", "int8")


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Raises InvalidModel where no C++ can be generated of the network, InvalidSetting where more than the batch varies."""
    write_program(None, network, pruned, job)


def write_program(integers: Program | None, network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Write the network's program on integers, or the network where there is none. Raises as `write` does."""
    unit, source, _ = generated(network, pruned, job, integers)
    write_weights(unit, job)
    write_text(job.output, source)


def reader(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> Run:
    """Raises Unavailable where there is no compiler to check the file with."""
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        library = Path(folder) / "network.so"
        native.compile_to(job.output, library, (*native.FLAGS, *native.SHARED))
        return of_library(library, job)
