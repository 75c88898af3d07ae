"""What competitors are timed by: the wall's clock on a CPU, events on a GPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from ltcompile import timing
from ltcompile.engine.events import Events

Call = Callable[[], object]


class DeviceClock(Protocol):
    """Seconds, for `timing.interleave`, and what its calls need to be timed by them."""

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


@contextlib.contextmanager
def track(device: str) -> Iterator[DeviceClock]:
    """Where all run, and its clock; on a GPU one stream of its own, since the default one cannot be recorded."""
    if device == "cpu":
        yield Wall()
        return
    was, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            yield Events()
    finally:
        torch.backends.cudnn.benchmark = was
