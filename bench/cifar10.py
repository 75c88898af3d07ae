"""One real CIFAR-10 run through all stages, on a short schedule that a small CPU can do.

    python bench/cifar10.py --data-root DIR        writes bench/results/cifar10-lenet5/

LeNet-5, three rounds of 30 % by global L1 ranking with learning-rate rewinding, three seeds, controls, shrink, bench, report.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from _common import RESULTS, ROOT

RUN = "cifar10-lenet5"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data-root", required=True, help="folder with CIFAR-10 in torchvision's layout")
    arguments.add_argument("--epochs", help="epochs of each training, if not the recipe's")
    options = arguments.parse_args()
    run, data = f"runs/{RUN}", ["--data-root", options.data_root]
    shutil.rmtree(run, ignore_errors=True)
    find = ["--recipe", str(ROOT / "recipes" / f"{RUN}.toml"), *(["--epochs", options.epochs] if options.epochs else [])]
    for command in (
        ["find", *find, *data, "--name", RUN],
        ["shrink", f"{run}/ticket.pt", "-o", f"{run}/small.onnx"],
        ["bench", f"{run}/small.onnx", *data, "--runtime", "onnxruntime", "--runtime", "eager"],
        ["report", run],
    ):
        print("ltcompile", *command, flush=True)
        subprocess.run([str(Path(sys.executable).with_name("ltcompile")), *command], check=True)
    kept = RESULTS / RUN
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("search.json", "history.jsonl", "small.json", "bench.json", "bench.csv", "report.json"):
        text = (Path(run) / name).read_text().replace(options.data_root, "DIR")  # no path of one machine
        (kept / name).write_text(text)


if __name__ == "__main__":
    main()
