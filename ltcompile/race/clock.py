"""What a race is timed by: the wall's clock on a CPU, events on a GPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from ltcompile import timing

Call = Callable[[], object]


class Clock(Protocol):
    """Seconds, for `timing.race`, and what its calls need to be timed by them."""

    settle_s: float

    def __call__(self) -> float: ...

    def timed(self, call: Call) -> Call:
        """`call`, ended before it returns."""

    def wait(self) -> None:
        """Until everything that was called has ended."""


class Wall:
    """Calls on a CPU have ended when they return."""

    settle_s = timing.SETTLE_S

    def __call__(self) -> float:
        return time.perf_counter()

    def timed(self, call: Call) -> Call:
        return call

    def wait(self) -> None:
        pass


class Events:
    """Seconds of the current stream of a GPU, which timed calls alone move: from an event in front of each to one behind it."""

    settle_s = 0.0

    def __init__(self) -> None:
        self._seconds = 0.0
        self._start, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def __call__(self) -> float:
        return self._seconds

    def timed(self, call: Call) -> Call:
        def run() -> None:
            self._start.record()
            call()
            self._end.record()
            self._end.synchronize()
            self._seconds += self._start.elapsed_time(self._end) / 1000

        return run

    def wait(self) -> None:
        torch.cuda.synchronize()


@contextlib.contextmanager
def track(device: str) -> Iterator[Clock]:
    """Where everyone runs, and its clock; on a GPU one stream of its own, since the default one cannot be recorded."""
    if device == "cpu":
        yield Wall()
        return
    was, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            yield Events()
    finally:
        torch.backends.cudnn.benchmark = was
