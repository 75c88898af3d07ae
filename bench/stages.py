"""What the stages cost besides training: `--help`, and shrink of a VGG-16 ticket in time and memory.

    python bench/stages.py        writes bench/results/stages.json

Each runs in a process of its own, five times, with all imports; the table holds medians. Shrink's peak is its highest resident memory less that of
a process that shrinks a LeNet-5 (0.24 MiB): exporting imports 750 modules on its way, which `import ltcompile` does not.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _common import finish

import ltcompile as lt
from ltcompile.core.records import Trained, Verdict

RUNS = 5
LTCOMPILE = str(Path(sys.executable).with_name("ltcompile"))
# VmHWM restarts with a program; ru_maxrss begins with what its parent holds.
PEAK = "print(1024 * int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]))"


def main() -> None:
    help_s = statistics.median(_seconds([LTCOMPILE, "--help"])[0] for _ in range(RUNS))
    with tempfile.TemporaryDirectory() as scratch:
        ticket, dense_bytes = _ticket(Path(scratch), "vgg16")
        peaks = [_shrink_peak_bytes(path) for path in (ticket, _ticket(Path(scratch), "lenet5")[0])]
        command = [LTCOMPILE, "shrink", str(ticket), "-o", str(ticket.with_suffix(".onnx"))]
        shrink_s = statistics.median(_seconds(command)[0] for _ in range(RUNS))
        record = json.loads(ticket.with_suffix(".json").read_text())
    peak = peaks[0] - peaks[1]
    result = {
        "bench": "stages",
        "help_s": help_s,
        "shrink_command_s": shrink_s,
        "shrink_call_s": record["seconds"],
        "shrink_peak_bytes_above_lenet5": peak,
        "dense_bytes": dense_bytes,
        "peak_over_dense": peak / dense_bytes,
        "equality_error": record["equality_error"],
        "onnx_error": record["onnx_error"],
    }
    for name, value in result.items():
        print(f"{name:<34} {value}")
    finish("stages", result)


def _seconds(command: list[str]) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, (done.stdout.strip().splitlines() or [""])[-1]


def _shrink_peak_bytes(ticket: Path) -> float:
    """The median highest resident memory of a process that shrinks `ticket`."""
    shrink = f"import ltcompile as lt\nlt.shrink({str(ticket)!r}, {str(ticket.with_suffix('.onnx'))!r})\n"
    return statistics.median(int(_seconds([sys.executable, "-c", shrink + PEAK])[1]) for _ in range(RUNS))


def _ticket(folder: Path, name: str) -> tuple[Path, int]:
    """A ticket of the untrained network `name` at half its filters, as shrink does not look at accuracy, and the bytes of its dense weights."""
    torch.manual_seed(0)
    model, example = lt.build_model(name), torch.randn(2, 3, 32, 32)
    plan = lt.plan(model, example)
    small = lt.cut(model, plan)
    counted = lt.size(small, example)
    row = Trained(0, "ticket", 1, plan.filters[1], counted.params, counted.macs, 1, 0.0, 0.0, 0.0, 0.0, 0.0, "0", 1)
    ticket = lt.Ticket(
        model={"name": name, "arguments": {"classes": 10, "in_channels": 3, "image_size": 32}},
        plan=plan,
        weights=small.state_dict(),
        initial_seed=0,
        recipe=lt.Recipe(),
        config={},
        history=(row,),
        verdict=Verdict(None, "none", 0.5, 0.95, {}, [], {}, {}),
        level=1,
        seed=0,
        data={"name": "none", "class_names": [str(c) for c in range(10)], "shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3},
    )
    path = folder / f"{name}.pt"
    ticket.save(path)
    return path, sum(p.numel() * 4 for p in model.parameters())


if __name__ == "__main__":
    main()
