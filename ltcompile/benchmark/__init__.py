"""Measured, not estimated: latency side by side, memory above what was held before, accuracy through the runtime."""

from __future__ import annotations

from ltcompile.benchmark.rows import BenchResult, measure
from ltcompile.core.load import busy_share
from ltcompile.timing import interleave, speedup

__all__ = ["BenchResult", "busy_share", "interleave", "measure", "speedup"]
