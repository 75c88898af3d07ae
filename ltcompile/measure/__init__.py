"""Measured, not estimated: latency side by side, memory above what was held before, accuracy through the backend."""

from __future__ import annotations

from ltcompile.core.load import busy_share
from ltcompile.measure.bench import BenchResult, bench
from ltcompile.measure.memory import peak_above
from ltcompile.timing import race, speedup

__all__ = ["BenchResult", "bench", "busy_share", "peak_above", "race", "speedup"]
