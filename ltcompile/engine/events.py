"""Times on a GPU by events on the current stream, without the CPU's launch time, and with cleared caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ltcompile.runtimes._cuda import record
from ltcompile.timing import Fastest, fastest, interleave

HOLD_CYCLES = 100_000  # of the device, about 50 us: longer than the CPU takes to launch a replay
COPIES = (2, 32)  # launches of one kernel in a graph, each on memory of its own
COPIED_BYTES = 1 << 30  # of all these copies
FLUSHED_BYTES = 1 << 28  # read to empty the caches; the L2 of an H200 holds 50 MB


class Events:
    """A clock of the current stream: the sum, over timed calls, of the seconds between an event before and one after each.

    The device waits before the first event until the CPU has launched the call, so that a replay's time is the device's alone. Of a launch
    that takes the CPU longer than 50 us, the rest counts.
    """

    settle_s = 0.0

    def __init__(self) -> None:
        self._seconds = 0.0
        self._start, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def __call__(self) -> float:
        return self._seconds

    def timed(self, call: Callable[[], object]) -> Callable[[], object]:
        """`call`, which returns when the device has completed it."""

        def run() -> None:
            torch.cuda._sleep(HOLD_CYCLES)
            self._start.record()
            call()
            self._end.record()
            self._end.synchronize()
            self._seconds += self._start.elapsed_time(self._end) / 1000

        return run

    def wait(self) -> None:
        """Wait until the device has completed all calls."""
        torch.cuda.synchronize()


def replays_ms(graphs: Mapping[str, torch.cuda.CUDAGraph], seconds: float) -> dict[str, float]:
    """Median milliseconds of each graph, timed interleaved."""
    events = Events()
    times = interleave({name: events.timed(graph.replay) for name, graph in graphs.items()}, seconds=seconds, settle_s=0.0, clock=events)
    return {name: float(np.median(ms)) for name, ms in times.items()}


def fastest_replay(graphs: Mapping[str, torch.cuda.CUDAGraph], seconds: float) -> Fastest:
    """The fastest graph, timed again after it was picked."""
    events = Events()
    calls = {name: events.timed(graph.replay) for name, graph in graphs.items()}
    return fastest(calls, screen_s=seconds / 2, seconds=seconds, settle_s=0.0, clock=events)


def copies(layer_bytes: int) -> int:
    """How many copies of a layer's memory are launched one after the other when it is timed."""
    return max(COPIES[0], min(COPIES[1], COPIED_BYTES // max(layer_bytes, 1)))


def cold_us(work: Mapping[str, Callable[[int], Any]], count: int, seconds: float) -> dict[str, float]:
    """Median microseconds of each, timed interleaved: launches on memory that no cache holds.

    Each graph reads memory beyond the caches' size, then launches `work[name](i)` for i below `count`, each on the i-th copy of its memory;
    the time of the reading alone is subtracted.
    """
    memory = torch.ones(FLUSHED_BYTES // 4, device="cuda")

    def launch_all(run: Callable[[int], Any] | None) -> None:
        memory.sum()
        for copy in range(count if run else 0):
            assert run is not None
            run(copy)

    launch_all(None)  # a first call may allocate
    alone = "caches cleared"
    graphs = {name: record(lambda run=run: launch_all(run)) for name, run in {alone: None, **work}.items()}  # type: ignore[misc]
    ms = replays_ms(graphs, seconds)
    return {name: 1000 * max(ms[name] - ms[alone], 1e-6) / count for name in work}
