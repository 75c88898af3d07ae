"""Measured, not estimated: latency side by side, memory above what was held before, accuracy through the runtime."""
