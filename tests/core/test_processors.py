"""How many processors a process may use, by fake control groups."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ltcompile import processors

FILES = {
    "no control groups": ({}, math.inf),
    "no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
    "a container's": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
    "a container's, named by its host": ({"proc/self/cgroup": "0::/docker/ab\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
    "the strictest above": (
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n"},
        0.5,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        3.0,
    ),
    "nonsense": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "many\n"}, math.inf),
}


@pytest.mark.parametrize("name", FILES)
def test_quotas_are_read(tmp_path: Path, name: str) -> None:
    files, expected = FILES[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert processors.quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [(0.2, 1), (1.0, 1), (1.5, 2), (64.0, 64), (math.inf, 64)])
def test_a_quota_is_rounded_up(monkeypatch: pytest.MonkeyPatch, quota: float, expected: int) -> None:
    monkeypatch.setattr(processors, "quota", lambda: quota)
    monkeypatch.setattr(processors, "cpuset", lambda: 64)
    assert processors.processors() == expected
