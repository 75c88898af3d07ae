"""MNN: OUTPUT.mnn, for any batch; fp16 is that of weights, int8 by MNN's own quantiser."""

from __future__ import annotations

from ltcompile.deploy.formats._converted import from_onnx
from ltcompile.runtimes.mnn import RANGES, READS, convert, quantize

__all__ = ["RANGES", "quantize"]

SUFFIX = READS
RUNTIME = "mnn"
write, reader = from_onnx(RUNTIME, convert)
