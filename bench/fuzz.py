"""Feed spoiled files to everything that reads files: each is read, or refused with an error of ours, soon and in little memory.

    pip install atheris
    OMP_NUM_THREADS=1 python bench/fuzz.py [--files 100000]      writes bench/results/fuzz.json and fuzz.md

libFuzzer (through atheris) follows the coverage of ltcompile and of torch's unpickler, and keeps what leads it further; files are spoiled
as tests/support/readers.py does, which corrects checksums and lengths so that the damage gets past them. Each reader has a process of its own. What is
neither read nor refused, or takes more than 5 s of CPU time, goes to tests/corpus, where it is a test from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import atheris
from torch import _weights_only_unpickler

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "tests" / "corpus"
LONGEST_S, HANGS_S = 5, 60  # of CPU time, and of waiting, as other work may take the processor
MOST_MB, LONGEST_BYTES = 4096, 1 << 16
NOTHING = {"files": 0, "read": 0, "seconds": 0.0, "slowest_s": 0.0, "grown_mb": 0}
PATIENCE = 20  # failures of one reader that are collected


with atheris.instrument_imports(include=["ltcompile"]):
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from _common import RESULTS, finish
    from readers import READERS
atheris.instrument_func(_weights_only_unpickler.Unpickler.load)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--files", type=int, default=100_000)
    files = -(-arguments.parse_args().files // len(READERS))
    rows = []
    for name in READERS:
        rows.append(run(name, files))
        print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    (RESULTS / "fuzz.md").write_text(table(rows))
    failures = sum(row["failures"] for row in rows)
    finish("fuzz", {"bench": "fuzz", "files": sum(row["files"] for row in rows), "failures": failures, "readers": rows})


def run(name: str, files: int) -> dict[str, Any]:
    """All the files of one reader: a process until it ends or fails, then another with another seed."""
    row: dict[str, Any] = {"reader": name, "failures": 0, "edges": 0, **NOTHING}
    while row["files"] < files and row["failures"] < PATIENCE:
        with tempfile.TemporaryDirectory() as scratch:
            work = name, files - row["files"], row["failures"] + 1, Path(scratch)
            process = multiprocessing.get_context("fork").Process(target=fuzz, args=work)  # of one that has imported everything
            process.start()
            process.join()
            log, report = (Path(scratch) / "log").read_text(errors="replace"), json.loads((Path(scratch) / "report").read_text())
            if process.exitcode:
                row["failures"] += keep(name, Path(scratch), log)
        for key in ("files", "read", "seconds"):
            row[key] = round(row[key] + report[key], 1)
        for key in ("slowest_s", "grown_mb"):
            row[key] = max(row[key], report[key])
        row["edges"] = max([row["edges"], *(int(line.split("cov: ")[1].split()[0]) for line in log.splitlines() if "cov: " in line)])
    return row


def keep(name: str, scratch: Path, log: str) -> int:
    """Keep what the process failed on among the tests; how many files that are."""
    print(log[-2000:], file=sys.stderr, flush=True)
    found = [path for kind in ("crash", "timeout", "oom") for path in scratch.glob(f"{kind}-*")]
    if not found:
        raise SystemExit(f"the fuzzer of {name} failed by itself")
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    for path in found:
        shutil.copy(path, CORPUS / name / hashlib.sha256(path.read_bytes()).hexdigest()[:12])
    return len(found)


def fuzz(name: str, files: int, seed: int, scratch: Path) -> None:
    """In a process of its own, which libFuzzer ends: spoil files and read them, and write down what came of it."""
    os.chdir(scratch)
    for descriptor in (1, 2):
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    warnings.simplefilter("ignore")
    reader, whole = READERS[name], READERS[name].whole()
    reader.accepts(whole, scratch)  # what is imported late is no growth
    began, held = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report: dict[str, Any] = {**NOTHING}
    Path("report").write_text(json.dumps(report))

    def one(data: bytes) -> None:
        start = time.process_time()
        report["files"] += 1
        try:
            report["read"] += reader.accepts(data, scratch)
        except Exception:
            Path("crash-of-ours").write_bytes(data)  # libFuzzer itself keeps those that end the process, or hang
            raise
        finally:
            took = time.process_time() - start
            report["slowest_s"] = max(report["slowest_s"], round(took, 2))
            report["seconds"] = round(time.perf_counter() - began, 1)
            report["grown_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) >> 10
            if report["files"] % 500 == 0 or report["files"] >= files or sys.exc_info()[0] is not None:
                Path("report").write_text(json.dumps(report))
        if took > LONGEST_S:
            Path("crash-slow").write_bytes(data)
            raise TimeoutError(f"it took {took:.1f} s")

    def spoil(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        try:
            return reader.spoil(whole if chance.random() < 0.5 else data, chance)[:most]
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
