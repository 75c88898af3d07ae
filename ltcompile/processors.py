"""How many processors this process may use.

No runtime follows a container's quota of processor time, and not all follow a cpuset: they start threads for every processor of the machine, which
wait for each other, or for the kernel to let them run on.
"""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path


def cpuset() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processors() -> int:
    """Those of the cpuset, but no more than the quota pays for, rounded up."""
    return max(1, math.ceil(min(quota(), cpuset())))


def limited() -> bool:
    """Whether a quota, of which PyTorch and OpenVINO know nothing, allows fewer processors than the cpuset, which they follow."""
    return processors() < cpuset()


@cache
def quota(root: Path = Path("/")) -> float:
    """Processors whose whole time Linux' control groups grant this process: the least of its group and those above; infinite without a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    found = [math.inf]
    for _, controllers, name in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount, path = root / "sys/fs/cgroup" / ("cpu" if controllers else ""), Path(name.lstrip("/"))
        # In a container the name may be the host's, of which nothing is mounted; the mount itself is then the container's group.
        found += [_granted(mount / part) for part in (path, *path.parents)]
    return min(found)


def _granted(group: Path) -> float:
    """By one control group, of version 2 or 1."""
    try:
        if (group / "cpu.max").exists():
            time_us, period_us = (group / "cpu.max").read_text().split()
        else:
            time_us, period_us = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return math.inf if time_us in ("max", "-1") else int(time_us) / int(period_us)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
