"""Public networks of all kinds but classifiers of images: planned, cut to half of their channels, written as ONNX, compared with PyTorch.

    python bench/coverage_tasks.py              # all
    python bench/coverage_tasks.py yolo raft    # those whose names hold one of these

Detection, segmentation, video and optical flow of torchvision; segmentation_models_pytorch, MONAI, Ultralytics' YOLO and Hugging Face
Transformers, each with random weights, at small sizes. A network whose package is missing is left out of the table; install them with

    pip install segmentation-models-pytorch monai ultralytics transformers

Each network runs in a process of its own. Rows are kept in bench/results/coverage-tasks.json as they come; a network that has one is not
run again unless it is named. The table is bench/results/coverage-tasks.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from _common import RESULTS
from _public_networks import BUILDERS

ROWS = RESULTS / "coverage-tasks.json"
LIMIT_S = 1800
RATIO = 0.5
CUT, FILE = 1e-8, 1e-4  # what shrink allows the cut network in float64, and what counts as equal here of the file, both relative
PACKAGES = {
    "torchvision": "torchvision",
    "smp": "segmentation_models_pytorch",
    "monai": "monai",
    "yolo": "ultralytics",
    "hf": "transformers",
}
HEAD = ("network", "inputs", "groups", "params left", "MACs left", "cut against mask", "ONNX Runtime against PyTorch", "left alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(row_of(given.names[0])))
        return
    for name in names():
        wanted = any(part in name for part in given.names)
        if (given.names and not wanted) or (name in rows() and not wanted):
            continue
        if importlib.util.find_spec(PACKAGES[name.split(":")[0]]) is None:
            print(f"{name}: {PACKAGES[name.split(':')[0]]} is not installed", flush=True)
            continue
        row = in_process(name)
        print(line(name, row), flush=True)
        write(rows() | {name: row})
    print(json.dumps(summary(rows())))


def names() -> list[str]:
    return [f"{kind}:{name}" for kind, (listed, _) in BUILDERS.items() for name in listed.split()]


def rows() -> dict[str, Any]:
    return json.loads(ROWS.read_text())["rows"] if ROWS.exists() else {}


def in_process(name: str) -> dict[str, Any]:
    """The row that a process of its own gives."""
    try:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT_S} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def row_of(name: str) -> dict[str, Any]:
    """Plan, cut and shrink one network; both comparisons are those of shrink, which refuses a network that fails them."""
    import torch

    import ltcompile as lt
    from ltcompile.errors import LtcompileError

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    kind, wanted = name.split(":", 1)
    model, example = BUILDERS[kind][1](wanted)
    model = spread_out(model.eval())
    began = time.perf_counter()
    plan = lt.plan(model, example, RATIO)
    planned = time.perf_counter()
    pruned = lt.Pruned.of_cut(model, plan, example)
    dense, small = lt.size(model, example), lt.size(pruned.small, example)
    row: dict[str, Any] = {
        "inputs": shapes(example),
        "groups": len(plan.groups),
        "left_alone": dict(Counter(reason for reason in plan.frozen.values() if "output" not in reason)),
        "params_left": small.params / dense.params,
        "macs_left": small.macs / dense.macs,
        "plan_seconds": planned - began,
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            record = lt.shrink(pruned, Path(folder) / "small.onnx", dynamic=()).record
        except LtcompileError as error:
            return row | {"refused": str(error).replace(f"{folder}/", "").splitlines()[0][:300]}
    unmatched = {"unmatched": record["unmatched_items"]} if "unmatched_items" in record else {}
    return row | {"cut_error": record["equality_error"], "file_error": record["onnx_error"], **unmatched}


def spread_out(model: Any) -> Any:
    """The network with parameters and statistics that are neither zero nor one, so that an error shows."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if (
                value.is_floating_point()
                and value.dim() == 1
                and any(part in key for part in ("weight", "bias", "running", "gamma", "beta"))
            ):
                positive = any(part in key for part in ("weight", "var", "gamma"))
                value.copy_((0.5 if positive else -0.2) + (1.0 if positive else 0.4) * torch.rand(value.shape, generator=generator))
    return model


def shapes(example: Any) -> str:
    """Such as "2x3x64x64, 2x3x64x64"."""
    if isinstance(example, dict):
        return ", ".join(f"{key} {shapes(value)}" for key, value in example.items())
    return ", ".join(map(shapes, example)) if isinstance(example, tuple) else "x".join(map(str, example.shape))


def line(name: str, row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {name} | failed: {row['failed']} |"
    left = "; ".join(f"{count}x {reason}" for reason, count in row["left_alone"].items()) or "-"
    cells = [name, row["inputs"], str(row["groups"]), f"{row['params_left']:.2f}", f"{row['macs_left']:.2f}"]
    others = f" but for {row['unmatched']:.2%} of the ranked items" if "unmatched" in row else ""
    cells += [f"refused: {row['refused']}", "-"] if "refused" in row else [f"{row['cut_error']:.0e}", f"{row['file_error']:.0e}{others}"]
    return f"| {' | '.join([*cells, left])} |"


def summary(done: dict[str, Any]) -> dict[str, Any]:
    worked = [row for row in done.values() if "cut_error" in row]
    compared = [row for row in worked if row["file_error"] > 0]  # outputs that are all zero agree whatever was cut
    equal = sum(row["cut_error"] <= CUT and row["file_error"] <= FILE for row in compared)
    return {
        "networks": len(done),
        "cut, written and equal": equal,
        "cut and written, but agree to 0 exactly, as zeros do": len(worked) - len(compared),
        "with channels left alone": sum(bool(row["left_alone"]) for row in worked),
    }


def write(done: dict[str, Any]) -> None:
    from ltcompile.core.records import provenance
    from ltcompile.paths import write_json, write_text

    origin = {**provenance(), "command": "python bench/coverage_tasks.py"}
    write_json(ROWS, {"rows": done, "summary": summary(done), "provenance": origin})
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *(line(name, row) for name, row in done.items())]
    counts = "\n".join(f"- {key}: {value}" for key, value in summary(done).items())
    about = (
        "Half of the channels of each group; made by `python bench/coverage_tasks.py`. Errors are relative; the cut is compared in float64."
    )
    write_text(
        RESULTS / "coverage-tasks.md",
        "\n".join(["# Coverage: detection, segmentation, video, flow, volumes, text", "", about, "", counts, "", *lines, ""]),
    )


if __name__ == "__main__":
    main()
