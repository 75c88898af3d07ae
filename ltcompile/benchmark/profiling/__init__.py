"""How long each layer of a network takes at which widths, measured inside the runtime that will run it."""

from ltcompile.benchmark.profiling.work import cached, described, joulemeter, profile, stopwatch

__all__ = ["cached", "described", "joulemeter", "profile", "stopwatch"]
