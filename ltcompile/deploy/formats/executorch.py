"""ExecuTorch with XNNPACK: OUTPUT.pte, for one row; converted in an environment of its own."""

from __future__ import annotations

from ltcompile.deploy.formats._converted import from_program
from ltcompile.runtimes.executorch import READS

SUFFIX = READS
PRECISIONS = ("fp32",)
RUNTIME = VENV = "executorch"
CONVERT = """
import sys, torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
made = to_edge_transform_and_lower(torch.export.load(sys.argv[1]), partitioner=[XnnpackPartitioner()]).to_executorch()
open(sys.argv[2], "wb").write(made.buffer)
"""
write, reader = from_program(RUNTIME, CONVERT)
