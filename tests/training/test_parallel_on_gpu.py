"""Data-parallel searches on GPUs: NCCL where each process has a GPU, gloo where two share one, and both in a rehearsal on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
REHEARSAL = not Path("/dev/nvidiactl").exists()
SEARCH = (
    "find --model vgg16-quarter --data digits --image-size 16 --epochs 2 --batch 64 --rounds 1 --rate 0.5 --seeds 1 --no-controls --margin 50 "
    "--set train.precision=fp32 --set train.compile=never --set train.virtual_ranks=2"
)


def rows(folder: Path, name: str, *more: str) -> list[dict[str, Any]]:
    """The rows of a search, without times."""
    command = [sys.executable, "-m", "ltcompile", *SEARCH.split(), "--device", "cpu" if REHEARSAL else "cuda", "--name", name, *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((folder / "runs" / name / "search.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """To rounding: NCCL and cuDNN add in orders of their own. On CPUs to the bit."""
    one, two = rows(tmp_path, "one"), rows(tmp_path, "two", "--nproc-per-node", "2")
    if REHEARSAL:
        assert one == two
        return
    assert [(row["arm"], row["level"]) for row in one] == [(row["arm"], row["level"]) for row in two]
    assert one[0]["train_loss"] == pytest.approx(two[0]["train_loss"], rel=0.01), "the dense network: a ranking may turn on rounding"


@pytest.mark.skipif(REHEARSAL or torch.cuda.device_count() < 2, reason="needs a CUDA device for each of two processes")
def test_synchronised_batch_norms_by_nccl(tmp_path: Path) -> None:
    found = rows(tmp_path, "synchronised", "--nproc-per-node", "2", "--set", "train.sync_bn=true")
    assert all(row["val_score"] > 0.5 for row in found)
