"""Feed spoiled files to everything that reads files: each is read, or refused with an error of ours, soon and in little memory.

    pip install atheris
    OMP_NUM_THREADS=1 python bench/fuzz.py [--files 100000]      writes bench/results/fuzz.json and fuzz.md

libFuzzer (through atheris) follows the coverage of our readers, of torch's and of zipfile, and keeps what leads it further; files are spoiled
as tests/readers.py does, which mends checksums and lengths so that the damage gets past them. Each reader has a process of its own. What is
neither read nor refused, or takes more than 5 s of CPU time, goes to tests/corpus, where it is a test from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from _common import RESULTS, finish

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "tests" / "corpus"
NAMES = ("ticket", "plan", "run", "onnx", "weights", "safetensors")
FOLLOWED = ["ltcompile", "torch._weights_only_unpickler", "torch.serialization", "torch._utils", "zipfile"]
LONGEST_S, HANGS_S = 5, 60  # of CPU time, and of waiting, as other work may take the processor
MOST_MB, LONGEST_BYTES = 4096, 1 << 16
PATIENCE = 20  # failures of one reader that are collected


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--files", type=int, default=100_000)
    arguments.add_argument("--one", nargs=4, metavar=("READER", "FILES", "SEED", "STATISTICS"), help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.one:
        name, files, seed, statistics = asked.one
        fuzz(name, int(files), int(seed), Path(statistics))
    rows = []
    for name in NAMES:
        rows.append(run(name, -(-asked.files // len(NAMES))))
        print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    (RESULTS / "fuzz.md").write_text(table(rows))
    finish(
        "fuzz",
        {"bench": "fuzz", "files": sum(row["files"] for row in rows), "failures": sum(row["failures"] for row in rows), "readers": rows},
    )


def run(name: str, files: int) -> dict[str, Any]:
    """All the files of one reader: a process until it ends or fails, then another with another seed."""
    row: dict[str, Any] = {
        "reader": name,
        "files": 0,
        "read": 0,
        "failures": 0,
        "seconds": 0.0,
        "slowest_s": 0.0,
        "grown_mb": 0,
        "edges": 0,
    }
    while row["files"] < files and row["failures"] < PATIENCE:
        with tempfile.TemporaryDirectory() as scratch:
            statistics, seed = Path(scratch) / "statistics.json", row["failures"] + 1
            command = [sys.executable, __file__, "--one", name, str(files - row["files"]), str(seed), str(statistics)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch)
            told = json.loads(statistics.read_text())
            row["failures"] += keep(name, Path(scratch), done)
        for key in ("files", "read", "seconds"):
            row[key] = round(row[key] + told[key], 1)
        for key in ("slowest_s", "grown_mb"):
            row[key] = max(row[key], told[key])
        row["edges"] = max(
            [row["edges"], *(int(line.split("cov: ")[1].split()[0]) for line in done.stderr.splitlines() if "cov: " in line)]
        )
    return row


def keep(name: str, scratch: Path, done: subprocess.CompletedProcess[str]) -> int:
    """Keep what the process failed on among the tests; how many files that are."""
    if done.returncode == 0:
        return 0
    found = [path for path in scratch.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-", "slow-"))]
    if not found:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    for path in found:
        data = path.read_bytes()
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        (CORPUS / name / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
    print(done.stderr[-2000:], file=sys.stderr, flush=True)
    return 1


def fuzz(name: str, files: int, seed: int, statistics: Path) -> None:
    """In a process of its own, which libFuzzer ends: spoil files and read them. Writes what came of it as it goes."""
    import atheris

    sys.path.insert(0, str(ROOT / "tests"))
    with atheris.instrument_imports(include=FOLLOWED):
        from readers import READERS

    warnings.simplefilter("ignore")
    reader, whole = READERS[name], READERS[name].whole()
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    reader.accepts(whole, folder)  # what is imported late is no growth
    began, held = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {"files": 0, "read": 0, "seconds": 0.0, "slowest_s": 0.0, "grown_mb": 0}

    def one(data: bytes) -> None:
        start = time.process_time()
        told["files"] += 1
        try:
            told["read"] += reader.accepts(data, folder)
        finally:
            took = time.process_time() - start
            told["slowest_s"] = max(told["slowest_s"], round(took, 2))
            told["seconds"] = round(time.perf_counter() - began, 1)
            told["grown_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) >> 10
            if told["files"] % 500 == 0 or told["files"] >= files or sys.exc_info()[0] is not None:
                statistics.write_text(json.dumps(told))
        assert took < LONGEST_S, f"it took {took:.1f} s"

    def spoil(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        try:
            return reader.spoil(whole if chance.random() < 0.2 else data, chance)[:most]
        except Exception:  # it is too far from whole to be spoiled further
            return atheris.Mutate(data, most)

    (seeds := Path("seeds")).mkdir()
    (seeds / "whole").write_bytes(whole)
    limits = [f"-runs={files}", f"-seed={seed}", f"-timeout={HANGS_S}", f"-rss_limit_mb={MOST_MB}", f"-max_len={LONGEST_BYTES}"]
    atheris.Setup([sys.argv[0], str(seeds), *limits], one, custom_mutator=spoil)
    atheris.Fuzz()


def table(rows: list[dict[str, Any]]) -> str:
    head = "| reader | files | read | refused | neither | edges covered | files/s | slowest file, CPU s | memory grown, MB |"
    lines = [
        f"| {r['reader']} | {r['files']:,} | {r['read']:,} | {r['files'] - r['read'] - r['failures']:,} | {r['failures']} | {r['edges']:,} | "
        f"{r['files'] / max(r['seconds'], 1):.0f} | {r['slowest_s']} | {r['grown_mb']} |"
        for r in rows
    ]
    return "\n".join(["# Spoiled files", "", "What `python bench/fuzz.py` found; see there.", "", head, "|" + " --- |" * 9, *lines, ""])


if __name__ == "__main__":
    main()
