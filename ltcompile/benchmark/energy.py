"""Joules, where a driver counts them: NVML on an NVIDIA GPU, RAPL on a CPU."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ltcompile.errors import Unavailable

SECONDS = 0.4  # counters move every 20 to 100 ms
POWERCAP = Path("/sys/class/powercap")
Counter = Callable[[], float]  # joules since some moment
Call = Callable[[], object]


def counter(device: str) -> Counter:
    """The joules that `device` ("cpu", "cuda") has taken since some moment. Raises Unavailable where no counter can be read."""
    return _rapl(POWERCAP) if device == "cpu" else _nvml()


def per_image(joules: Counter, call: Call, batch: int) -> float:
    """What one of the `batch` images of a call that has ended when it returns takes: everything that the device does meanwhile."""
    before, start, runs = joules(), time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        call()
        runs += 1
    return (joules() - before) / (runs * batch)


def _rapl(folder: Path) -> Counter:
    """All packages of an Intel or AMD CPU; a counter that wraps around at its range is taken into account."""
    packages = sorted(folder.glob("intel-rapl:?"))
    if not packages:
        raise Unavailable(f"{folder} has no counters of energy")
    try:
        ranges = [int((package / "max_energy_range_uj").read_text()) for package in packages]
        last = [int((package / "energy_uj").read_text()) for package in packages]
    except OSError as error:
        raise Unavailable(f"{folder}'s counters of energy cannot be read ({error.strerror}); they are root's on most systems") from error
    spent_uj = [0] * len(packages)

    def joules() -> float:
        for at, package in enumerate(packages):
            now = int((package / "energy_uj").read_text())
            spent_uj[at] += (now - last[at]) % (ranges[at] + 1)
            last[at] = now
        return sum(spent_uj) / 1e6

    return joules


def _nvml() -> Counter:
    """The current GPU, by its driver's library."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        raise Unavailable(f"NVML does not load: {error}") from error
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    uuid = f"GPU-{torch.cuda.get_device_properties().uuid}".encode()
    counts = (
        nvml.nvmlInit_v2() == 0
        and nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) == 0
        and nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) == 0
    )
    if not counts:
        raise Unavailable("NVML does not count the energy of this GPU")

    def joules() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return millijoules.value / 1000

    return joules
