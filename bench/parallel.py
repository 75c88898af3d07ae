"""What data-parallel training costs: two processes against one on two cores, and shards against whole batches in one process.

    python bench/parallel.py [--turns 3]        writes bench/results/parallel.json and parallel.md; two idle cores, three minutes

Trainings of ResNet-20 on digits of 32x32 pixels, one thread a process, in turns; the fastest epoch of each counts. Both trainings of two
virtual ranks must end with the same bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import torch
from _common import RESULTS, ROOT, finish

import ltcompile as lt
from ltcompile import paths, ranks
from ltcompile.core.load import busy_share
from ltcompile.tasks import Classification
from ltcompile.training import train

CASES = {
    "one process, whole batches": (1, 1),
    "one process, 2 shards": (1, 2),
    "2 processes, a shard each": (2, 2),
}  # processes, virtual ranks
MODEL, EPOCHS, BATCH = "resnet20", 3, 128


def child(virtual_ranks: int) -> None:
    """Train; the first process prints the fastest epoch and a digest of the weights."""
    recipe = lt.Recipe(epochs=EPOCHS, batch=BATCH, lr=0.05, precision="fp32", compile="never", virtual_ranks=virtual_ranks)
    with ranks.joined("cpu"):
        task = Classification(lt.load_data("digits"))
        torch.manual_seed(0)
        model = lt.build_model(MODEL, **task.description.arguments)
        done = train(model, task, recipe, 0, torch.device("cpu"))
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
        if not ranks.follows():
            print(json.dumps({"seconds": min(epoch.seconds for epoch in done.epochs), "digest": digest}))


def run(processes: int, virtual_ranks: int) -> dict[str, Any]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, __file__, "--child", str(virtual_ranks)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(turns: int) -> dict[str, Any]:
    busy = busy_share()
    found = [{name: run(*case) for name, case in CASES.items()} for _ in range(turns)]
    digests = {name: {turn[name]["digest"] for turn in found} for name in CASES}
    _, one, two = CASES
    assert digests[one] == digests[two] and len(digests[one]) == 1, "one and two processes must give the same bits"
    seconds = {name: min(turn[name]["seconds"] for turn in found) for name in CASES}
    return {
        "bench": "parallel",
        "model": MODEL,
        "batch": BATCH,
        "turns": turns,
        "busy": busy,
        "epoch_s": seconds,
        "speedup": seconds[one] / seconds[two],
        "overhead": 2 * seconds[two] / seconds[one] - 1,
    }


def table(result: dict[str, Any]) -> str:
    lines = ["| ResNet-20, batches of 128 digits | seconds an epoch |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {seconds:.2f} |" for name, seconds in result["epoch_s"].items())])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--turns", type=int, default=3)
    arguments.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.child:
        return child(given.child)
    result = measure(given.turns)
    summary = f"two processes train {result['speedup']:.2f} times as fast as one; of their time, {result['overhead']:.0%} is added"
    paths.write_text(
        RESULTS / "parallel.md", f"# Data-parallel training\n\nMade by `python bench/parallel.py`: {summary}.\n\n{table(result)}\n"
    )
    print(table(result))
    finish("parallel", result)
    return None


if __name__ == "__main__":
    main()
