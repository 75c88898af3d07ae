"""How much memory something takes above what the process held before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def watch(device: str) -> Callable[[], int | None]:
    """Start watching; each call of what comes back gives the highest bytes since then above what was held now.

    "cpu" is resident memory, which only Linux reports, and only to a few hundred KiB: memory that the process freed earlier
    and kept is handed back first; what other threads take counts too. "cuda" is PyTorch's allocator; None where another
    runtime allocates for itself.
    """
    gc.collect()
    return _watch_cuda() if device == "cuda" else _watch_resident()


def _watch_cuda() -> Callable[[], int | None]:
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: torch.cuda.max_memory_allocated() - before or None


def _watch_resident() -> Callable[[], int | None]:
    if sys.platform != "linux":
        return lambda: None
    with contextlib.suppress(OSError, AttributeError):  # other C libraries than glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR.write_text("5")  # the high-water mark falls to what is resident now
    except OSError:
        return lambda: None
    before = _high_water_bytes()
    return lambda: max(0, _high_water_bytes() - before)


def _high_water_bytes() -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found, f"{STATUS} has no VmHWM"
    return int(found[1]) * 1024
