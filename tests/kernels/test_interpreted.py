"""Kernels in Triton's interpreter, which a process of its own runs: against float64, and fused against one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_laws import LAWS


@pytest.mark.slow
def test_interpreted_kernels_hold() -> None:
    """What fails is named."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = [sys.executable, str(Path(__file__).with_name("kernel_laws.py"))]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    failures: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    assert failures == dict.fromkeys(LAWS)
