"""MNN: OUTPUT.mnn, for any batch; fp16 is that of weights."""

from __future__ import annotations

from ltcompile.deploy.formats._converted import from_onnx
from ltcompile.runtimes.mnn import READS, convert

SUFFIX = READS
PRECISIONS = ("fp32", "fp16")
RUNTIME = "mnn"
write, reader = from_onnx(RUNTIME, convert)
