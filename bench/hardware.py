"""What planning by measured time is worth on this CPU, in ONNX Runtime: how well profiles predict, whether targets are met, and the speed
at equal accuracy, next to plans by MACs, as they are or rounded; and int8 on top, for a target of its own.

    python bench/hardware.py                        in about an hour; writes bench/results/hardware.json and .md
    python bench/hardware.py --parts predict meet   some of it, in minutes

Networks that are timed are trained on the embedded digits, with several seeds, and timed in turns. Nothing else may run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, ROOT, finish

import ltcompile as lt
from ltcompile.benchmark.profiling import profile, stopwatch
from ltcompile.benchmark.rows import measure
from ltcompile.core.deployment import Deployment
from ltcompile.core.profile import Profile
from ltcompile.core.records import provenance
from ltcompile.lower import export_onnx, fold_batch_norm
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.quantize import Quantizer, Scheme
from ltcompile.pruned import compact, dense_network, pruned_of
from ltcompile.runtimes import Subject
from ltcompile.search import SearchResult, data_for, recipe_for
from ltcompile.search.settings import SearchSettings

PREDICTED = (  # network, side, batch, and the seconds that profiling it may take
    ("vgg16", 32, 64, 180),
    ("vgg16", 32, 1, 180),
    ("resnet18", 32, 64, 180),
    ("torchvision:mobilenet_v2", 224, 1, 180),
    ("torchvision:resnet50", 224, 1, 600),
)
SPEEDUPS = (2.0, 4.0, 8.0)
MACS, ALIGNS = 0.1, (1, 8, 16, 32)
EQUAL_POINTS = 0.3
INT8_SPEEDUP, INT8_POINTS, INT8_MARGIN = 25.0, 0.5, 0.08  # the margin is for nodes that stay in float
SEEDS, EPOCHS = 3, 8
SECONDS, LONG_SECONDS = 6.0, 15.0  # of each row


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    arguments.add_argument("--networks", nargs="*", default=None, metavar="NAME", help="of the predicted ones, as vgg16:64; all by default")
    arguments.add_argument("--seeds", type=int, default=SEEDS)
    arguments.add_argument("--epochs", type=int, default=EPOCHS)
    options = arguments.parse_args()
    path = RESULTS / "hardware.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"bench": "hardware"}
    with tempfile.TemporaryDirectory() as scratch:
        for part in options.parts:
            found = PARTS[part](Path(scratch), options)
            result[part] = merged(result.get(part, []), found) if part == "predict" else found
            result.setdefault("commits", {})[part] = provenance()["commit"]
            result.pop("provenance", None)
            result["claims"] = claims(result)
            (RESULTS / "hardware.md").write_text(markdown(result))
            finish("hardware", result)


def merged(there: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of all networks, with the newer ones where there are two, in the order of PREDICTED."""
    rows = {(row["network"], row["batch"]): row for row in [*there, *found]}
    return [rows[name, batch] for name, _, batch, _ in PREDICTED if (name, batch) in rows]


def named(name: str, side: int, channels: int = 3) -> dict[str, Any]:
    return {"name": name, "arguments": {"classes": 10, "in_channels": channels, "image_size": side}}


def fresh(model: dict[str, Any], target: Deployment, scratch: Path) -> tuple[Profile, float]:
    """A profile made now, and the seconds that it took."""
    began = time.perf_counter()
    found = profile(model, target, output=scratch / f"{model['name'].replace(':', '-')}-{target.batch}.json", resume=False)
    return found, time.perf_counter() - began


def predict(scratch: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """How far predictions are from what was measured, on networks that the profile has not seen."""
    rows = []
    for name, side, batch, allowed in PREDICTED:
        if options.networks is not None and f"{name}:{batch}" not in options.networks:
            continue
        found, seconds = fresh(named(name, side), Deployment("cpu", "onnxruntime", batch), scratch)
        common = {
            "seconds": seconds,
            "allowed": allowed,
            "dense_ms": found.dense_ms,
            "drift": found.drift,
            "commit": provenance()["commit"],
        }
        rows.append({"network": name, "batch": batch, **common, "median_error": found.median_error, "errors": found.errors()})
    return rows


def meet(scratch: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Targets of VGG-16, planned with the clock at hand, and measured again afterwards, interleaved with the dense network."""
    model, target = named("vgg16", 32), Deployment("cpu", "onnxruntime", 64)
    found, _ = fresh(model, target, scratch)
    network, images = lt.build_model("vgg16").eval(), torch.zeros(2, 3, 32, 32)
    subjects, watch, seconds = [subject("dense", network, images, scratch)], stopwatch(model, target), {}
    for speedup in SPEEDUPS:
        wanted: dict[str, Any] = {"target_time": 1 / speedup, "profile": found}
        began = time.perf_counter()
        lt.plan(network, images, **wanted)
        between = time.perf_counter()
        plan = lt.plan(network, images, measured=watch, **wanted)
        seconds[speedup] = between - began, time.perf_counter() - between
        subjects.append(subject(f"{speedup:g}", lt.cut(network, plan).eval(), images, scratch))
    rows = {row.subject: row for row in timed_in_turns(subjects, torch.randn(64, 3, 32, 32), 64, LONG_SECONDS)}
    return [
        {"requested": s, **speed(rows[f"{s:g}"]), "seconds_to_plan": plain, "seconds_with_the_clock": c}
        for s, (plain, c) in seconds.items()
    ]


def equal(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """VGG-16 on digits, cut once and rewound: by MACs, as it comes and rounded; and by time, in that of the fastest of those."""
    target = Deployment("cpu", "onnxruntime", 64)
    found: dict[str, SearchResult] = {}
    for align in ALIGNS:
        folder = with_dense(scratch / f"a{align}", scratch / f"a{ALIGNS[0]}")
        found[f"MACs, multiples of {align}"] = search(folder, options.seeds, options.epochs, target_macs=MACS, align=align)
    first = {name: seen.ticket for name, seen in found.items()}
    images = next(iter(digits().test.batches(64, torch.device("cpu"), None, 0)))[0]
    dense = dense_network(next(iter(first.values())))
    subjects = [subject(name, compact(pruned_of(t)).small, images, scratch) for name, t in first.items()]
    rows = {row.subject: row for row in timed_in_turns([subject("dense", dense, images, scratch), *subjects], images, 64, LONG_SECONDS)}
    share = min(row.ms_p50 for row in rows.values()) / rows["dense"].ms_p50
    model = dict(next(iter(first.values())).model)
    profiled, _ = fresh(model, target, scratch)
    found["time"] = search(
        with_dense(scratch / "time", scratch / f"a{ALIGNS[0]}"),
        options.seeds,
        options.epochs,
        profiled,
        stopwatch(model, target),
        target_time=share,
        on=str(target),
    )
    subjects.append(subject("time", compact(pruned_of(found["time"].ticket)).small, images, scratch))
    rows = {row.subject: row for row in timed_in_turns([subject("dense", dense, images, scratch), *subjects], images, 64, LONG_SECONDS)}
    table = {name: {"ms": rows[name].ms_p50, "speedup": rows[name].speedup, **accuracy(seen)} for name, seen in found.items()}
    return {"share": share, "dense_ms": rows["dense"].ms_p50, "rows": table}


def int8(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tickets for an int8 target at batch 1, through `shrink --precision int8`: as fast as requested, relative to dense fp32, and what they lose."""
    target = Deployment("cpu", "onnxruntime", 1, "int8")
    model = named("vgg16", 32, digits().description.shape[0])
    images = next(iter(digits().test.batches(64, torch.device("cpu"), None, 0)))[0]
    share = whole_int8_speedup(scratch, images) / (INT8_SPEEDUP * (1 + INT8_MARGIN))
    profiled, seconds = fresh(model, target, scratch)
    watch, rows, subjects = stopwatch(model, target), [], []
    for seed in range(options.seeds):
        folder = with_dense(scratch / f"int8-{seed}", scratch / f"a{ALIGNS[0]}", seed)
        found = search(folder, 1, options.epochs, profiled, watch, seed=seed, target_time=share, on=str(target))
        shrunk = lt.shrink(found.ticket, scratch / f"int8-{seed}.onnx", precision="int8", calibrate=digits())
        dense = next(row for row in found.rows if row.arm == "dense")
        rows.append({"seed": seed, "dense": dense.test_score, **shrunk.record["int8"]["test_score"], "report": shrunk.record["int8"]})
        subjects.append(Subject(f"int8, seed {seed}", None, shrunk.path))
    network = dense_network(found.ticket)
    rows_of_seeds = [
        row for row in timed_in_turns([subject("dense", network, images, scratch), *subjects], images, 1) if row.subject != "dense"
    ]
    lost = [100 * (row["dense"] - row["int8"]) for row in rows]
    return {
        "share": share,
        "seconds": seconds,
        "speedup": statistics.median(row.speedup for row in rows_of_seeds),
        "low": min(row.speedup_low for row in rows_of_seeds),
        "high": max(row.speedup_high for row in rows_of_seeds),
        "lost_points": statistics.mean(lost),
        "lost_spread": statistics.stdev(lost) if len(lost) > 1 else None,
        "seeds": rows,
    }


def whole_int8_speedup(scratch: Path, images: torch.Tensor) -> float:
    """How much faster the whole network is in int8, at batch 1."""
    network = lt.build_model("vgg16", in_channels=images.shape[1])
    whole = subject("dense", network, images, scratch)
    assert isinstance(whole.onnx, Path)
    Quantizer(whole.onnx, images[:4]).write(Scheme(), scratch / "whole-int8.onnx")
    row = next(r for r in timed_in_turns([whole, Subject("int8", None, scratch / "whole-int8.onnx")], images, 1) if r.subject == "int8")
    return float(row.speedup)


def digits() -> Any:
    return data_for("vgg16", "digits")


def with_dense(folder: Path, done: Path, seed: int | str = "*") -> Path:
    """A run folder in which the dense networks of the run `done` are trained already: all searches here begin with the same ones."""
    for trained in done.glob(f"seed{seed}/dense-0.pt"):
        there = folder / trained.relative_to(done)
        there.parent.mkdir(parents=True, exist_ok=True)
        if there != trained:
            shutil.copyfile(trained, there)
    return folder


def search(folder: Path, seeds: int, epochs: int, profiled: Profile | None = None, clock: Any = None, **settings: Any) -> SearchResult:
    given = SearchSettings.load(ROOT / "recipes" / "hardware.toml")
    recipe = dataclasses.replace(given.recipe(recipe_for("vgg16", digits())), epochs=epochs)
    return lt.find("vgg16", digits(), given.config(seeds=seeds, **settings), recipe=recipe, folder=folder, profile=profiled, measured=clock)


def accuracy(found: SearchResult) -> dict[str, Any]:
    """Test accuracy of the only level in points, mean over seeds and their spread."""
    points = [100 * (row.test_score or 0) for row in found.rows if row.arm == "ticket"]
    return {
        "accuracy": statistics.mean(points),
        "spread": statistics.stdev(points) if len(points) > 1 else None,
        "macs": found.ticket.row.macs,
    }


def subject(name: str, network: torch.nn.Module, images: torch.Tensor, scratch: Path) -> Subject:
    folded, _ = fold_batch_norm(network.eval(), images[:2])
    path = scratch / f"{name.replace(' ', '-')}.onnx"
    export_onnx(folded, images[:2], path)
    return Subject(name, folded.eval(), path)


def timed_in_turns(subjects: Iterable[Subject], images: torch.Tensor, batch: int, seconds: float = SECONDS) -> list[Any]:
    some = list(subjects)
    inputs = Inputs.of(some[0].need_module("a benchmark"), images.contiguous())
    return measure(some, inputs, runtimes=["onnxruntime"], devices=["cpu"], batches=[batch], seconds_per_row=seconds).rows


def speed(row: Any) -> dict[str, float]:
    """Of a row, relative to the dense network."""
    return {"ms": row.ms_p50, "speedup": row.speedup, "low": row.speedup_low, "high": row.speedup_high}


def claims(result: dict[str, Any]) -> list[tuple[str, float, bool]]:
    """Each with what was found, and whether it holds."""
    found = []
    for row in result.get("predict", ()):
        found.append(
            (
                f"{row['network']} at batch {row['batch']}: median error of predictions at most 10 %",
                row["median_error"],
                row["median_error"] <= 0.1,
            )
        )
        allowed = row["allowed"]
        found.append((f"{row['network']} at batch {row['batch']}: profiled within {allowed} s", row["seconds"], row["seconds"] <= allowed))
    for row in result.get("meet", ()):
        error = row["speedup"] / row["requested"] - 1
        found.append((f"a target of {row['requested']:g}x is met within 5 %", row["speedup"], abs(error) <= 0.05))
        found.append((f"a plan for {row['requested']:g}x takes less than 5 s", row["seconds_to_plan"], row["seconds_to_plan"] < 5))
    if "equal" in result:
        rows = result["equal"]["rows"]
        time_row, plain = rows["time"], rows["MACs, multiples of 1"]
        lost = plain["accuracy"] - time_row["accuracy"]
        gain = plain["ms"] / time_row["ms"]
        found.append((f"by time: at most {EQUAL_POINTS} points below the plan by MACs", lost, lost <= EQUAL_POINTS))
        found.append(("by time: at least 1.3 times as fast as the plan by MACs as it comes", gain, gain >= 1.3))
        rounded = min(row["ms"] for name, row in rows.items() if name not in ("time", "MACs, multiples of 1")) / time_row["ms"]
        found.append(("by time: not slower than rounding to 8, 16 or 32 (within 5 %)", rounded, rounded >= 0.95))
    if "int8" in result:
        fast, lost = result["int8"]["speedup"], result["int8"]["lost_points"]
        found.append((f"pruned and int8: at least {INT8_SPEEDUP:g} times as fast as dense fp32 at batch 1", fast, fast >= INT8_SPEEDUP))
        found.append((f"pruned and int8: at most {INT8_POINTS} points below dense fp32", lost, lost <= INT8_POINTS))
    return found


def markdown(result: dict[str, Any]) -> str:
    lines = ["# Planning by measured time", "", "What `python bench/hardware.py` found; hardware.json names the machine and versions.", ""]
    lines += ["| claim | found |  |", "| --- | --- | --- |"]
    lines += [f"| {claim} | {value:.3g} | {'holds' if holds else 'does not hold'} |" for claim, value, holds in result["claims"]]
    if "equal" in result:
        lines += ["", "| plan | MACs | ms | speedup | test accuracy, points |", "| --- | --- | --- | --- | --- |"]
        for name, row in result["equal"]["rows"].items():
            spread = "" if row["spread"] is None else f" ± {row['spread']:.2f}"
            lines.append(f"| {name} | {row['macs']:,} | {row['ms']:.3f} | {row['speedup']:.2f}x | {row['accuracy']:.2f}{spread} |")
    return "\n".join([*lines, ""])


PARTS: dict[str, Callable[[Path, argparse.Namespace], Any]] = {"predict": predict, "meet": meet, "equal": equal, "int8": int8}

if __name__ == "__main__":
    main()
