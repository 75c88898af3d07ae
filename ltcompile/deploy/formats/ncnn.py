"""ncnn: OUTPUT.param and OUTPUT.bin, for one row; fp16 is that of weights."""

from __future__ import annotations

from ltcompile.deploy.formats._converted import from_onnx
from ltcompile.runtimes.ncnn import READS, convert

SUFFIX, COMPANIONS = READS, (".bin",)
PRECISIONS = ("fp32", "fp16")
RUNTIME = "ncnn"
write, reader = from_onnx(RUNTIME, convert)
