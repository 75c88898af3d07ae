"""TensorFlow Lite, for LiteRT: OUTPUT.tflite, for one row; converted in an environment of its own."""

from __future__ import annotations

from ltcompile.deploy.formats._converted import from_program
from ltcompile.runtimes.litert import READS

SUFFIX = READS
PRECISIONS = ("fp32",)
RUNTIME = VENV = "litert"
CONVERT = """
import sys, litert_torch, torch
program = torch.export.load(sys.argv[1])
args, kwargs = program.example_inputs
litert_torch.convert(program.module(), args, sample_kwargs=kwargs or None).export(sys.argv[2])
"""
write, reader = from_program(RUNTIME, CONVERT)
