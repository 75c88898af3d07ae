"""How long each layer of a network takes at which widths, measured inside the runtime that will run it."""

from ltcompile.benchmark.profiling.work import cached, joulemeter, profile, stopwatch

__all__ = ["cached", "joulemeter", "profile", "stopwatch"]
