"""Generated C++ against the other runtimes on this CPU, with one and two threads; by default for one image in fp32.

    python bench/cpu.py                 networks of 32 and 64 px, in under eight minutes once compiled
    python bench/cpu.py --precisions int8 bf16 --batches 1 8 64 --networks "VGG-16 at 5 %"
    python bench/cpu.py --rehearse      everything but the figures: compiles what the run will need, and writes nothing

Rows go to bench/results/cpu/MACHINE.json, and bench/results/cpu/README.md has a table for each machine. Rows that the file has are not measured
again, but with --again. Each network's deployments are timed in turns; the fastest of ours and the fastest of the others are timed again, in
turns, and their ratio is what counts. Nothing else may run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import RESULTS, finish, machine
from _cpu_networks import FIFTH, ROUNDED, SMALL, networks
from cpu_layers import peak
from torch import Tensor, nn

from ltcompile import runtimes, timing
from ltcompile.core.deployment import Deployment
from ltcompile.core.records import provenance
from ltcompile.engine.cpu import native, tuning
from ltcompile.engine.cpu.bf16 import in_bf16
from ltcompile.engine.cpu.generate import generate
from ltcompile.engine.host import make_source
from ltcompile.errors import Crashed, Disagreement, InvalidSetting, Unavailable
from ltcompile.graph.count import size
from ltcompile.lower import export_onnx, fold_batch_norm
from ltcompile.lower.lower import lower
from ltcompile.numerics import TOLERANCES, largest_error
from ltcompile.paths import write_text
from ltcompile.runtimes import Subject

THREADS = (1, 2)
IN_PROCESS = ("onnxruntime", "openvino")
OTHERS = (*IN_PROCESS, "mnn", "ncnn", "tract")  # those that are there, the last three in processes of their own
CALIBRATED = 64  # random images from which int8 takes its ranges
SCREEN_S, SECONDS, TUNE_S = 0.6, 3.0, 20.0
BANDS = ((10e6, 1.8), (100e6, 1.3), (math.inf, 1.0))  # MACs up to which the ratio must be at least this


@dataclass(frozen=True)
class Case:
    """A network with images, in a precision."""

    name: str
    model: nn.Module
    images: Tensor
    precision: str

    @property
    def key(self) -> str:
        """Its name in results."""
        parts = [
            self.name,
            *([self.precision] if self.precision != "fp32" else []),
            *([f"batch {len(self.images)}"] if len(self.images) > 1 else []),
        ]
        return ", ".join(parts)


def calls(case: Case, folder: Path, tune_s: float) -> dict[str, timing.Call]:
    """What is timed, by name, each checked: fp32 and bf16 against PyTorch; int8 against the program on integers, which ours equals."""
    model, images, found = case.model, case.images, dict[str, timing.Call]()
    folded, _ = fold_batch_norm(model, images[:1])
    if case.precision == "int8":
        rows = torch.cat([images, torch.randn(CALIBRATED, *images.shape[1:])])
        source = make_source(model, rows, [1], "int8")
        if source.single is None:
            raise SystemExit(f"{case.key}: {source.refusal}")
        program, data = source.single, source.onnx()
        expected = torch.cat([program.run(image) for image in images.split(1)])
    else:
        program = lower(model, images[:1]).program
        program = in_bf16(program) if case.precision == "bf16" else program
        export_onnx(folded, images[:1], path := folder / "network.onnx")
        data = path.read_bytes()
        with torch.no_grad():
            expected = model(images)
    unit = generate(program, tuning.tune(program, tune_s, max(THREADS)), max(THREADS))
    for threads in THREADS:
        library, outputs = native.Library(unit, threads), torch.empty_like(expected)
        found[f"ltcompile, {threads}"] = _call(library, images, outputs)
        found[f"ltcompile, {threads}"]()
        _check(f"ltcompile, {threads}", outputs, expected, 0.0 if case.precision == "int8" else TOLERANCES[case.precision])
    subject = Subject("the network", folded, data, case.precision)
    for runtime in (name for name in OTHERS if name in runtimes.names()):
        if reason := runtimes.unavailable(runtime, "cpu"):
            print(f"{runtime}: {reason}", flush=True)
            continue
        for threads in THREADS if runtimes.declared(runtime, "THREADS") else (0,):
            try:
                opened = runtimes.load if runtime in IN_PROCESS else runtimes.load_apart
                session = opened(subject, Deployment("cpu", runtime, len(images), case.precision, threads))
                bound = session.bind(images.numpy())
                bound.call()
                _check(f"{runtime}, {threads}", next(iter(bound.read().values())), expected, TOLERANCES[case.precision])
            except (Crashed, Disagreement, Unavailable, InvalidSetting) as error:
                print(f"{case.key}: {runtime}, {threads} is left out: {error}", flush=True)
                continue
            found[f"{runtime}, {threads}"] = bound.call
    return found


def _call(library: native.Library, images: Tensor, outputs: Tensor) -> timing.Call:
    run, x, y, count = library.run, images.data_ptr(), outputs.data_ptr(), len(images)

    def call() -> Tensor:
        run(x, y, count)
        return outputs  # which keeps its memory

    return call


def _check(name: str, answer: Any, expected: Tensor, tolerance: float) -> None:
    if (error := largest_error(answer, expected)) > tolerance:
        raise Disagreement(f"{name} is off by {error:.1e} of the largest output")


def row(case: Case, tune_s: float, seconds: float) -> dict[str, Any]:
    """The times of all deployments of a network, and the ratio of the fastest others' to our fastest."""
    with tempfile.TemporaryDirectory() as folder:
        subjects = calls(case, Path(folder), tune_s)
    macs = size(case.model, case.images[:1]).macs
    screened = {key: float(np.median(ms)) for key, ms in timing.interleave(subjects, seconds=SCREEN_S if seconds else 0.01).items()}
    ours, other = (
        min((k for k in screened if k.startswith("ltcompile") == is_ours), key=screened.__getitem__) for is_ours in (True, False)
    )
    times = timing.interleave({key: subjects[key] for key in (ours, other)}, seconds=seconds or 0.01)
    ratio = timing.speedup(times[other], times[ours])
    us = {key: 1000 * float(np.median(ms)) for key, ms in times.items()}
    found = {"network": case.name, "macs": macs, "precision": case.precision, "batch": len(case.images), "commit": provenance()["commit"]}
    found |= {"screened_us": {k: 1000 * v for k, v in screened.items()}, "ours": ours, "other": other}
    return {**found, "ours_us": us[ours], "other_us": us[other], "ratio": ratio}


def claims(rows: Mapping[str, Mapping[str, Any]], flops: float) -> list[dict[str, Any]]:
    """What is wanted, and what was found with its interval."""
    found, least = [], 0.0
    for most, wanted in BANDS:
        for precision in ("fp32", "int8"):
            single = {n: r for n, r in rows.items() if r["precision"] == precision and r["batch"] == 1}
            ratios = [np.log(r["ratio"]) for n, r in single.items() if least < r["macs"] <= most and r["network"] != ROUNDED[1]]
            if not ratios:
                continue
            mean = [float(x) for x in np.exp(np.mean(ratios, axis=0))]
            band = f"{least / 1e6:g} to {most / 1e6:g} MMAC{', int8' * (precision == 'int8')}"
            text = f"{band}: geometric mean over the fastest other, {len(ratios)} networks"
            found.append({"claim": text, "wanted": wanted, "found": mean, "holds": mean[1] >= wanted})
        least = most
    if all(name in rows for name in ROUNDED):
        odd, rounded = (min(us for n, us in rows[name]["screened_us"].items() if n.startswith("ltcompile")) for name in ROUNDED)
        cost = odd / rounded  # `ours_us` depends on the runtime that it took turns with, and the two rows have different ones
        found.append({"claim": "odd widths over the next multiple of 8, at most", "wanted": 1.05, "found": [cost], "holds": cost <= 1.05})
    if FIFTH in rows:
        row = rows[FIFTH]
        share = 2 * row["macs"] / (row["screened_us"]["ltcompile, 1"] * 1e-6) / flops
        text = f"{FIFTH}: products over those of one core's peak ({flops / 1e9:.0f} GFLOP/s); Winograd needs fewer than it counts"
        found.append({"claim": text, "wanted": 0.75, "found": [share], "holds": share >= 0.75})
    return found


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of all machines, by the names of their files."""
    parts = ["# Generated C++ on a CPU\n\nOne image in fp32 where nothing else is said; microseconds by threads.\n"]
    for name, result in results.items():
        parts.append(f"## {result['provenance']['machine']['cpu']} (`{name}`)\n\n{table(result)}")
    return "\n".join(parts)


def table(result: Mapping[str, Any]) -> str:
    """A machine's rows and claims."""
    names = list(dict.fromkeys(k for r in result["rows"].values() for k in r["screened_us"]))
    lines = [f"| network | MMAC | {' | '.join(names)} | ratio of the fastest (95 %) |", "|---" * (len(names) + 3) + "|"]
    for name, r in result["rows"].items():
        times = " | ".join(f"{r['screened_us'][k]:.0f}" if k in r["screened_us"] else "" for k in names)
        lines.append(f"| {name} | {r['macs'] / 1e6:.1f} | {times} | {r['ratio'][0]:.2f} ({r['ratio'][1]:.2f} to {r['ratio'][2]:.2f}) |")
    lines += ["", "| claim | wanted | found | holds |", "|---|---|---|---|"]
    for c in result["claims"]:
        found = f"{c['found'][0]:.2f}" + (f" ({c['found'][1]:.2f} to {c['found'][2]:.2f})" if len(c["found"]) > 1 else "")
        lines.append(f"| {c['claim']} | {c['wanted']} | {found} | {'yes' if c['holds'] else 'no'} |")
    return "\n".join(lines) + "\n"


def write(rows: Mapping[str, Any]) -> None:
    """This machine's file, and the page of all."""
    finish(f"cpu/{machine()}", {"bench": "cpu", "rows": rows, "claims": claims(rows, peak())})
    files = {path.stem: json.loads(path.read_text()) for path in sorted((RESULTS / "cpu").glob("*.json"))}
    write_text(RESULTS / "cpu" / "README.md", page({name: result for name, result in files.items() if result["bench"] == "cpu"}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=SMALL, choices=list(networks()), metavar="NAME", help=", ".join(networks()))
    parser.add_argument("--precisions", nargs="*", default=["fp32"], choices=("fp32", "bf16", "int8"))
    parser.add_argument("--batches", nargs="*", type=int, default=[1])
    parser.add_argument("--again", action="store_true", help="measure rows that the file has, too")
    parser.add_argument("--rehearse", action="store_true", help="compile and check only")
    parser.add_argument("--tune-seconds", type=float, default=TUNE_S, help="for each network")
    arguments = parser.parse_args()
    path = RESULTS / "cpu" / f"{machine()}.json"
    rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path.exists() else {}
    known = set() if arguments.again else set(rows)
    for name, precision, batch in itertools.product(arguments.networks, arguments.precisions, arguments.batches):
        torch.manual_seed(0)
        model, image = networks()[name]()
        case = Case(name, model.eval(), torch.cat([image, torch.randn(batch - 1, *image.shape[1:])]), precision)
        if case.key in known:
            continue
        found = row(case, arguments.tune_seconds, 0 if arguments.rehearse else SECONDS)
        rounded = {k: round(v, 1) for k, v in found["screened_us"].items()}
        print(case.key, f"{found['macs'] / 1e6:.1f} MMAC", rounded, found["ratio"], flush=True)
        if not arguments.rehearse:
            rows[case.key] = found
            write(rows)


if __name__ == "__main__":
    main()
