"""All tests and benchmarks that need an NVIDIA GPU, in under eight minutes: `make gpu OUT=DIR`; RESUME=DIR runs the missing stages.

Stages run one after the other, each in processes of its own with a limit and a log, and none depends on another: the tests of the kernels,
our convolution against cuDNN's, the benchmark of competitors that build in seconds, and the rest. Results are written to DIR as soon as they
exist, as is the cache of tuned kernels; DIR/summary.md is one page, however the run ended.

    python bench/gpu.py --out DIR [--data-root FOLDER] [--rehearse]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOTAL_S = 465
REHEARSAL_SLOWER = 3  # times as long as a stage may take on a GPU
GRACE_S = 8  # from the signal that ends a stage to the one that kills it
LEAST_S = 15  # a stage does not start with less
POLL_S = 0.05
SHARDS = 8
LOST, LEFT_OUT = 75, 74  # exit codes of bench/competitors.py: the GPU must be opened again; out of time
RESTARTS = 3
PYTEST = ["-m", "pytest", "-o", "addopts=", "-q", "-W", "default", "--strict-markers", "-p", "no:logging", "-p", "gpu_tests", "-m", "gpu"]


@dataclass(frozen=True)
class Stage:
    """Commands that run at the same time, and their limit. `ended_by`: the exit codes after which a resumed run skips the stage."""

    name: str
    limit_s: float
    commands: tuple[tuple[str, ...], ...]
    ended_by: tuple[int, ...] = (0,)


@dataclass
class Outcome:
    """How a stage ended: its exit codes (None where it was stopped), and whether a resumed run skips it."""

    name: str
    seconds: float
    codes: list[int | None]
    finished: bool
    note: str = ""


def stages(out: Path, data_root: Path | None, rehearse: bool) -> list[Stage]:
    """The most important first."""
    shards = 1 if rehearse else SHARDS
    data = ("--data-root", str(data_root)) if data_root else ()
    tiny = ("--tiny", "--seconds", "0.01") if rehearse else ()

    def tests(*files: str, rehearsed: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        some = rehearsed if rehearse else ()
        return tuple((*PYTEST, f"--shard={at}/{shards}", f"--rows={out / 'tests.jsonl'}", *some, *files) for at in range(shards))

    def competitors(part: str, limit_s: float) -> Stage:
        command = (
            "bench/competitors.py",
            "--device",
            "cuda",
            "--out",
            str(out),
            "--parts",
            part,
            "--minutes",
            f"{limit_s / 60:.2f}",
            "--resume",
        )
        return Stage(f"competitors-{part}", limit_s, ((*command, *tiny, *data),))

    return [
        Stage("kernels", 100, tests("tests/kernels/test_on_gpu.py", rehearsed=("--every=36",)), (0, 1, 5)),
        Stage("conv", 30, (("bench/gpu_conv.py", "--out", str(out), *tiny[:1]),)),
        competitors("quick", 230),
        competitors("rest", 200),
        competitors("tuned", 100),
        Stage(
            "engine",
            60,
            tests("tests/engine/test_engine_on_gpu.py", "tests/benchmark/test_competitors.py", rehearsed=("-k", "what_came_before")),
            (0, 1, 5),
        ),
        Stage("parallel", 60, tests("tests/training/test_parallel_on_gpu.py", rehearsed=())[:1], (0, 1, 5)),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; what is finished there is not run again")
    parser.add_argument("--data-root", type=Path, help="folder with CIFAR-10 in torchvision's layout")
    parser.add_argument("--rehearse", action="store_true", help="the same without a GPU, on tiny networks, with a fake device")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    out = arguments.out.resolve()
    slow = REHEARSAL_SLOWER if arguments.rehearse else 1
    planned = [replace(stage, limit_s=slow * stage.limit_s) for stage in stages(out, arguments.data_root, arguments.rehearse)]
    return run(out, planned, slow * TOTAL_S, arguments.rehearse)


def run(out: Path, planned: Sequence[Stage], total_s: float, rehearse: bool = False) -> int:
    """Run the unfinished stages in `out`, in at most `total_s`; 0 where every stage passed."""
    end, lock, stop = time.monotonic() + total_s, threading.Lock(), threading.Event()
    outcomes = {name: Outcome(**value) for name, value in _read(out / "stages.json", {}).items()}

    def record(outcome: Outcome) -> None:
        with lock:
            outcomes[outcome.name] = outcome
            write(out / "stages.json", json.dumps({name: asdict(o) for name, o in outcomes.items()}, indent=1))
            write(out / "summary.md", summary(out, list(outcomes.values())))

    def run_lane(lane: Sequence[Stage]) -> None:
        for stage in lane:
            if stop.is_set():
                return
            if stage.name in outcomes and outcomes[stage.name].finished:
                continue
            if (left := min(stage.limit_s, end - time.monotonic())) < LEAST_S:
                record(Outcome(stage.name, 0.0, [], False, "out of time before it started"))
                continue
            print(f"{end - time.monotonic():5.0f} s left  {stage.name}", flush=True)
            record(outcome := _run_stage(out, stage, left, rehearse, stop))
            print(f"            {stage.name}: {outcome.note} ({outcome.seconds:.0f} s)", flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    lanes = _lanes(planned) if rehearse else [planned]
    with ThreadPoolExecutor(len(lanes)) as pool:
        try:
            list(pool.map(run_lane, lanes))
        except (KeyboardInterrupt, SystemExit):
            print("stopped", flush=True)
        finally:
            stop.set()
    write(out / "summary.md", summary(out, list(outcomes.values())))
    print((out / "summary.md").read_text(), flush=True)
    good = [stage.name in outcomes and outcomes[stage.name].finished and not any(outcomes[stage.name].codes) for stage in planned]
    return 0 if all(good) else 1


def _lanes(planned: Sequence[Stage]) -> list[list[Stage]]:
    """Stages that a rehearsal runs at the same time; those that write competitors.json stay one after the other."""
    ordered = [stage for stage in planned if stage.name in ("competitors-quick", "competitors-rest")]
    return [ordered, [stage for stage in planned if stage not in ordered]]


def _run_stage(out: Path, stage: Stage, limit_s: float, rehearse: bool, stop: threading.Event) -> Outcome:
    start = time.monotonic()
    codes: list[int | None] = []
    for _ in range(RESTARTS):
        codes = _run_once(out, stage, start + limit_s, rehearse, stop)
        if LOST not in codes:
            break
    finished = all(code in stage.ended_by for code in codes)
    known = {
        None: "stopped" if stop.is_set() else "stopped at its limit",
        0: "done",
        1: "something failed",
        LOST: "the GPU was lost",
        LEFT_OUT: "out of time",
    }
    note = ", ".join(dict.fromkeys(known.get(code, f"exit code {code}") for code in codes if code not in (0, 5))) or "done"
    return Outcome(stage.name, time.monotonic() - start, codes, finished, note)


def _run_once(out: Path, stage: Stage, end: float, rehearse: bool, stop: threading.Event) -> list[int | None]:
    """The exit codes of the stage's processes, None for those that were stopped."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "bench"), str(ROOT / "tests/support"), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "XDG_CACHE_HOME": str(out / "cache"),
    }
    launcher = [sys.executable, *(["bench/rehearsal.py"] if rehearse else [])]
    with contextlib.ExitStack() as stack:
        running = []
        for at, command in enumerate(stage.commands):
            log = stack.enter_context((out / f"{stage.name}{at if len(stage.commands) > 1 else ''}.log").open("ab"))
            running.append(
                subprocess.Popen(
                    [*launcher, *command],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        stack.callback(lambda: [_signal(process, signal.SIGKILL) for process in running])
        return _wait(running, end, stop)


def _wait(running: Sequence[subprocess.Popen[bytes]], end: float, stop: threading.Event) -> list[int | None]:
    """The exit codes; at the end, running processes are interrupted, so that they can write their results, and killed after the grace time."""
    while time.monotonic() < end - GRACE_S and not stop.is_set() and any(process.poll() is None for process in running):
        time.sleep(POLL_S)
    codes = [process.poll() for process in running]
    late = [process for process in running if process.poll() is None]
    for process in late:
        _signal(process, signal.SIGINT)
    last = min(end, time.monotonic() + GRACE_S)
    for process in late:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, last - time.monotonic()))
    return codes


def _signal(process: subprocess.Popen[bytes], what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, what)


# The summary


def summary(out: Path, outcomes: Sequence[Outcome]) -> str:
    """One page of what is in `out`."""
    first, tuned = (_read(out / f"{name}.json", {}) for name in ("competitors", "competitors-tuned"))
    where = first.get("machine", "no benchmark yet")
    parts = [f"# Results on the GPU: {where}, commit {first.get('provenance', {}).get('commit')}"]
    parts.append("\n".join(f"- {o.name}: {o.note or 'done'}, {o.seconds:.0f} s" for o in outcomes) or "Nothing has run.")
    parts += [_tests(out), _convolutions(out)]
    for result in (first, tuned):
        if result:
            parts += [_claims(result), _cases(result)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tests(out: Path) -> str:
    """Counts, and the first failures; of a test that ran twice, the last run."""
    last = {row["test"]: row for row in lines(out / "tests.jsonl")}
    counts = {kind: sum(row["outcome"] == kind for row in last.values()) for kind in ("passed", "failed", "skipped")}
    failed = [f"- `{row['test'].rpartition('/')[2]}`: {row['why'][:160]}" for row in last.values() if row["outcome"] == "failed"]
    counted = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    more = [f"- and {len(failed) - 12} more in tests.jsonl"] if len(failed) > 12 else []
    return "\n".join([f"**Tests**: {counted}.", *failed[:12], *more]) if last else ""


def _convolutions(out: Path) -> str:
    rows = lines(out / "conv.jsonl")
    times = [f"- {r['shape']}: triton {r['triton_us']} us, cudnn {r['cudnn_us']} us {r.get('error', '')}".rstrip() for r in rows]
    return "\n".join(["**conv2d against cuDNN**, fp16, cold caches", *times]) if times else ""


def _claims(result: dict[str, Any]) -> str:
    word = {True: "holds", False: "does not hold", None: "not decided"}
    found = [
        f"- {check['claim']}: {check['found']:.3g}, {word[check['holds']]}" for check in result["checks"] if check["found"] is not None
    ]
    return "\n".join(["**Claims**", *found]) if found else ""


def _cases(result: dict[str, Any]) -> str:
    """A line a case, fastest first, and the competitors that were refused, by reason."""
    cases = list(dict.fromkeys((row["subject"], row["batch"]) for row in result["rows"]))
    found = ["**Benchmark**, median us"]
    for case in cases:
        rows = sorted((r for r in result["rows"] if (r["subject"], r["batch"]) == case), key=lambda r: float(r["ms_p50"]))
        found.append(f"- {case[0]}, batch {case[1]}: " + ", ".join(f"{r['competitor']} {1000 * r['ms_p50']:.4g}" for r in rows))
    for reason in dict.fromkeys(r["reason"] for r in result["refused"]):
        names = dict.fromkeys(f"{r['competitor']} {r['subject']} {r['batch']}".strip() for r in result["refused"] if r["reason"] == reason)
        found.append(f"- not: {', '.join(list(names)[:4])}{' ...' if len(names) > 4 else ''}: {reason[:200]}")
    return "\n".join(found)


# Files


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, without a last one that was cut off."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row in one write, so that rows of several processes do not mix."""
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps(row).encode() + b"\n")


def write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


def _read(path: Path, otherwise: Any) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return otherwise


if __name__ == "__main__":
    sys.exit(main())
