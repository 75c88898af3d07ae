"""What structured pruning promises and what it gives: measured over theoretical speedup of many networks, in several runtimes.

    python bench/theory_against_measurement.py --minutes 40         # this machine; run it again to continue
    python bench/theory_against_measurement.py torchvision:resnet18 # these networks, again
    python bench/theory_against_measurement.py --by-time            # then: widths planned by measured time, which profiles each network
    python bench/theory_against_measurement.py --page               # the page and the picture alone, of whatever rows there are

Each network is cut to a half and a quarter of its MACs by the magnitude of its filters: to widths as they come, to multiples of 8 and of 16.
With --by-time it is also planned for a half and a quarter of its measured time. All cuts of a network and the network itself run in turns, on
one thread, in ONNX Runtime, OpenVINO and MNN, at batches of 1 and, where one image takes at most 20 ms, 16, in fp32 and int8; answers are
compared first: in fp32 with PyTorch, in int8 with fp32, within the bounds of `numerics`. Weights are fresh and int8 takes its ranges from
noise, which changes no time.

Rows go to bench/results/theory/MACHINE.json as they come, networks of all families in turns, so that a part of a run is balanced. Rows of other
machines are welcome: run it, and commit the file that it writes. README.md and picture.svg next to it are made of all files.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results" / "theory"
LIST = """
torchvision:resnet18 torchvision:mobilenet_v2 ours:vgg16 yolo:yolov8n torchvision:squeezenet1_1 smp:Unet-resnet18 torchvision:shufflenet_v2_x1_0
ours:resnet20 torchvision:mobilenet_v3_small torchvision:alexnet yolo:yolo11n torchvision:mnasnet0_5 ours:unet-small
torchvision:regnet_x_400mf torchvision:efficientnet_b0 smp:FPN-mobilenet_v2 torchvision:googlenet ours:resnet56 torchvision:resnet34
torchvision:mobilenet_v3_large yolo:yolov5n torchvision:vgg11_bn torchvision:shufflenet_v2_x0_5 torchvision:regnet_y_400mf
smp:DeepLabV3Plus-resnet18 torchvision:mnasnet1_0 ours:centernet-small torchvision:densenet121 torchvision:resnet50 yolo:yolov10n
torchvision:squeezenet1_0 torchvision:efficientnet_b1 torchvision:regnet_x_800mf torchvision:inception_v3 smp:Linknet-resnet18 yolo:yolo12n
torchvision:convnext_tiny torchvision:resnext50_32x4d torchvision:shufflenet_v2_x1_5 torchvision:regnet_y_800mf torchvision:vgg16_bn
torchvision:efficientnet_b2 torchvision:wide_resnet50_2 torchvision:regnet_x_1_6gf torchvision:efficientnet_v2_s torchvision:densenet161
"""
NETWORKS = LIST.split()
FRACTIONS = (0.5, 0.25)
METHODS = {"as they come": 1, "multiples of 8": 8, "multiples of 16": 16}
BY_TIME, PROFILED = "by time", "cpu:onnxruntime:b1:fp32:t1"
RUNTIMES, BATCHES, PRECISIONS = ("onnxruntime", "openvino", "mnn"), (1, 16), ("fp32", "int8")
NO_INT8 = {"mnn": "MNN's converter is not handed int8 files"}
SECONDS = 0.4  # a network in a cell; at least ten blocks run
SLOW_MS = 20.0  # at batch 1 in fp32: batches of 16 are left out
LIMIT_S = 1200  # of a network
FEW_BYTES = 10.0  # MACs for each byte read or written, below which a layer counts as bound by memory
TRAITS = {"depthwise": "MACs in depthwise layers", "odd": "MACs in layers with an odd width", "memory": "MACs in layers bound by memory"}
NUMBERS = ("macs", "dense_macs", "theoretical", "dense_ms", "ms", "speedup", "low", "high", "error", "of_theory")
KEYS = ("network", "method", "fraction", "runtime", "precision", "batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="networks to run, again where there are rows of them")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no network after so many")
    parser.add_argument("--by-time", action="store_true", help="plan by measured time, and run those cuts")
    parser.add_argument("--page", action="store_true", help="make the page alone")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        for row in rows_of(arguments.names[0], arguments.by_time):
            print(json.dumps(row), flush=True)
        return
    began, path = time.monotonic(), RESULTS / f"{machine()}.json"
    for name in [] if arguments.page else arguments.names or NETWORKS:
        done = read(path)
        if not arguments.names and any(row["network"] == name and (row["method"] == BY_TIME) == arguments.by_time for row in done["rows"]):
            continue
        if time.monotonic() - began > 60 * arguments.minutes:
            break
        rows = in_process(name, arguments.by_time)
        kept = [row for row in done["rows"] if row["network"] != name or (row["method"] == BY_TIME) != arguments.by_time]
        write(path, [*kept, *rows])
        print(f"{name}: {sum('reason' not in row for row in rows)} rows, {time.monotonic() - began:.0f} s", flush=True)
    print(json.dumps(page()))


def machine() -> str:
    """This machine's file: its processor and its number of cores."""
    from ltcompile.core.records import cpu_name

    return re.sub(r"[^a-z0-9]+", "-", f"{cpu_name()} {os.cpu_count()} cores".lower().replace("(r)", "")).strip("-")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {"rows": []}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    from ltcompile.core.records import provenance
    from ltcompile.paths import write_json

    settings = {"threads": 1, "seconds": SECONDS, "criterion": "l1"}
    write_json(path, {"kind": "theory", "format": 1, "settings": settings, "rows": rows, "provenance": provenance()})


def in_process(name: str, by_time: bool) -> list[dict[str, Any]]:
    """The rows of a network, from a process of its own; a row with the reason where that fails."""
    command = [sys.executable, __file__, name, "--one", *(["--by-time"] if by_time else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        text, failed = done.stdout, done.returncode
        reason = (done.stderr.strip().splitlines() or [f"it ended with {failed}"])[-1][:300]
    except subprocess.TimeoutExpired as error:
        text, failed, reason = (error.stdout or b"").decode(), 1, f"it took more than {LIMIT_S} s"
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    method = BY_TIME if by_time else "all"
    return [*rows, {"network": name, "method": method, "reason": reason}] if failed or not rows else rows


def network_of(name: str) -> tuple[Any, Any]:
    """A network in eval mode, and an input of its usual size."""
    import torch

    import ltcompile as lt

    kind, _, which = name.partition(":")
    torch.manual_seed(0)
    if kind == "ours":
        return lt.build_model(which, 10, 3, 32 if which != "centernet-small" else 64).eval(), torch.randn(
            1, 3, *(2 * [32 if which != "centernet-small" else 64])
        )
    if kind == "torchvision":
        size = 299 if which == "inception_v3" else 224
        return lt.build_model(name, 1000, 3, size).eval(), torch.randn(1, 3, size, size)
    sys.path.insert(0, str(Path(__file__).parent))
    import coverage_tasks

    if kind == "yolo":
        model, _ = coverage_tasks.yolo(which)
        model.model[-1].dynamic = True  # else its forward pass compares the batch with that of the last call
        return model.eval(), torch.randn(1, 3, 320, 320)
    import segmentation_models_pytorch as smp

    decoder, encoder = which.split("-", 1)
    return getattr(smp, decoder)(encoder, encoder_weights=None, classes=5).eval(), torch.randn(1, 3, 224, 224)


def cuts_of(model: Any, example: Any, by_time: bool) -> Iterator[tuple[str, float, Any]]:
    """The method, the fraction and the cut network, or the reason why there is none."""
    import ltcompile as lt
    from ltcompile.errors import LtcompileError

    profile = lt.profile(model, lt.Deployment.parse(PROFILED), example) if by_time else None
    for fraction in FRACTIONS:
        for method, align in ({BY_TIME: 1} if by_time else METHODS).items():
            target = {"target_time": fraction, "profile": profile} if by_time else {"target_macs": fraction, "align": align}
            try:
                plan = lt.plan(model, example, check=False, **target)
                yield method, fraction, lt.cut(model, plan).eval()
            except LtcompileError as error:
                yield method, fraction, str(error)


def rows_of(name: str, by_time: bool = False, cells: Any = None) -> Iterator[dict[str, Any]]:
    """All rows of a network."""
    import ltcompile as lt

    warnings.simplefilter("ignore")
    model, example = network_of(name)
    full, networks, facts = lt.size(model, example), {"dense": model}, {}
    for method, fraction, small in cuts_of(model, example, by_time):
        about = {"network": name, "method": method, "fraction": fraction}
        if isinstance(small, str):
            yield {**about, "reason": small[:300]}
            continue
        found = lt.size(small, example)
        key = f"{method} {fraction}"
        networks[key] = small
        facts[key] = {**about, "macs": found.macs, "dense_macs": full.macs, "theoretical": full.macs / found.macs, **traits(small, example)}
    with tempfile.TemporaryDirectory() as folder:
        yield from measured(networks, facts, example, Path(folder), cells)


def traits(model: Any, example: Any) -> dict[str, float]:
    """What decides, as shares of the MACs: depthwise layers, layers with a width that is not a multiple of 8, layers bound by memory."""
    import torch
    from torch import nn

    total, found, handles = 0, dict.fromkeys(TRAITS, 0), []

    def hook(layer: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        x, weight = inputs[0], layer.weight
        macs = output.numel() * weight[0].numel()
        widths = (weight.shape[0], weight.shape[1] * getattr(layer, "groups", 1))
        total += macs
        found["depthwise"] += macs * (getattr(layer, "groups", 1) == weight.shape[0] > 1)
        found["odd"] += macs * any(width % 8 for width in widths)
        found["memory"] += macs * (macs < FEW_BYTES * 4 * (x.numel() + output.numel() + weight.numel()))

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            handles.append(layer.register_forward_hook(hook))
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    return {name: value / max(total, 1) for name, value in found.items()}


def measured(networks: dict[str, Any], facts: dict[str, Any], example: Any, folder: Path, cells: Any = None) -> Iterator[dict[str, Any]]:
    """Rows of every runtime, precision and batch, or of `cells` alone; the cuts of one cell run in turns with the dense network."""
    import numpy as np
    import torch

    from ltcompile.errors import LtcompileError
    from ltcompile.lower import export_onnx, fold_batch_norm
    from ltcompile.lower.answers import of_network, probe
    from ltcompile.lower.quantize import Quantizer, Scheme

    cells = cells or [(r, p, b) for r in RUNTIMES for p in PRECISIONS for b in BATCHES]
    files: dict[tuple[str, str], Path | str] = {}
    expected, images = {}, probe(networks["dense"], example, max(BATCHES)).tensors[0].numpy()
    for at, (key, network) in enumerate(networks.items()):
        folded = fold_batch_norm(network, example)[0].eval()
        files[key, "fp32"] = plain = folder / f"{at}.onnx"
        export_onnx(folded, example, plain, input_names=("images",))
        expected[key] = [value.numpy() for value in of_network(folded)(probe(folded, example, max(BATCHES))).values()]
        if all(precision == "fp32" or runtime in NO_INT8 for runtime, precision, _ in cells):
            continue
        try:
            Quantizer(plain, torch.from_numpy(images)).write(Scheme(), path := folder / f"{at}.int8.onnx")
            files[key, "int8"] = path
        except LtcompileError as error:
            files[key, "int8"] = str(error)
    slow = set[str]()
    for runtime, precision, batch in cells:
        cell = {"runtime": runtime, "precision": precision, "batch": batch}
        if reason := left_out(*cell.values(), slow):
            yield {**next(iter(facts.values()), {}), **cell, "reason": reason} if facts else {**cell, "reason": reason}
            continue
        try:
            times, errors = timed({key: files[key, precision] for key in networks}, expected, images[:batch], **cell)
        except LtcompileError as error:
            yield from ({**about, **cell, "reason": str(error)[:300]} for about in facts.values())
            continue
        if batch == 1 and float(np.median(times["dense"])) > SLOW_MS:
            slow.add(runtime)
        yield from (row_of(facts[key], cell, times["dense"], times[key], errors[key]) for key in facts)


def left_out(runtime: str, precision: str, batch: int, slow: set[str]) -> str:
    """Why a cell is not measured, or ""."""
    if precision == "int8" and runtime in NO_INT8:
        return NO_INT8[runtime]
    return f"a batch of 1 takes more than {SLOW_MS:g} ms" if runtime in slow and batch > 1 else ""


def row_of(about: dict[str, Any], cell: dict[str, Any], dense: Any, small: Any, error: float) -> dict[str, Any]:
    import numpy as np

    from ltcompile.timing import speedup

    ratio, low, high = speedup(dense, small)
    times = {"dense_ms": float(np.median(dense)), "ms": float(np.median(small))}
    return {**about, **cell, **times, "speedup": ratio, "low": low, "high": high, "error": error, "of_theory": ratio / about["theoretical"]}


def timed(
    files: dict[str, Any], expected: dict[str, Any], images: Any, runtime: str, precision: str, batch: int
) -> tuple[Any, dict[str, float]]:
    """Times of all files in turns, and their errors. Raises LtcompileError where a runtime cannot run one, or answers otherwise."""
    from ltcompile import numerics
    from ltcompile.core.deployment import Deployment
    from ltcompile.errors import Disagreement, Unavailable
    from ltcompile.runtimes import Subject, load_apart
    from ltcompile.timing import interleave

    calls, errors = {}, {}
    for key, file in files.items():
        if isinstance(file, str):
            raise Unavailable(file)
        bound = load_apart(Subject(key, onnx=file), Deployment("cpu", runtime, batch, precision, 1)).bind(images)
        bound.call()
        found = list(bound.read().values())
        errors[key] = max(numerics.largest_error(y, x[:batch]) for y, x in zip(found, expected[key], strict=True))
        if reason := numerics.refusal_of(errors[key], precision):
            raise Disagreement(f"{key}: {reason}")
        calls[key] = bound.call
    return interleave(calls, seconds=SECONDS), errors


def faults(value: Any) -> list[str]:
    """What is wrong with the content of a machine's file; nothing, where it can be added to the page."""
    if not isinstance(value, dict) or value.get("kind") != "theory" or not isinstance(value.get("rows"), list):
        return ["it is not a file of bench/theory_against_measurement.py"]
    found = [f"it has no {key}" for key in ("settings", "provenance") if not isinstance(value.get(key), dict)]
    seen = set[tuple[Any, ...]]()
    for at, row in enumerate(value["rows"]):
        if "reason" in row:
            found += [] if isinstance(row["reason"], str) and row["reason"] and "network" in row else [f"row {at} has an empty reason"]
            continue
        numbers = [row.get(key) for key in (*NUMBERS, *TRAITS)]
        if row.get("method") not in {*METHODS, BY_TIME} or row.get("runtime") not in RUNTIMES or row.get("precision") not in PRECISIONS:
            found.append(f"row {at} has a method, runtime or precision that is not known")
        elif not all(isinstance(n, int | float) and math.isfinite(n) and n >= 0 for n in numbers):
            found.append(f"row {at} lacks a number of {', '.join((*NUMBERS, *TRAITS))}")
        elif not row["low"] <= row["speedup"] <= row["high"] or abs(row["of_theory"] * row["theoretical"] / row["speedup"] - 1) > 1e-6:
            found.append(f"row {at} contradicts itself")
        elif (key := tuple(row[k] for k in KEYS)) in seen:
            found.append(f"row {at} is there twice")
        else:
            seen.add(key)
    return found


def page() -> dict[str, Any]:
    """Write README.md and picture.svg of all machines' rows; the medians that they begin with."""
    from scipy.stats import spearmanr

    from ltcompile.paths import write_text

    machines = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    rows = [{**row, "machine": name} for name, value in machines.items() for row in value["rows"] if "of_theory" in row]
    lines = [f"# {INTRODUCTION[0]}", "", INTRODUCTION[1], "", "![Measured over theoretical speedup](picture.svg)", ""]
    medians: dict[str, float] = {}
    if rows:
        lines += [
            "## Measured over theoretical speedup: median (networks)",
            "",
            "| runtime | precision | batch | fraction | " + " | ".join([*METHODS, BY_TIME]) + " |",
        ]
        lines += ["| --- " * 4 + "| --- " * (len(METHODS) + 1) + "|"]
        for key, group in grouped(rows, "runtime", "precision", "batch", "fraction"):
            cells = []
            for method in [*METHODS, BY_TIME]:
                found = [row["of_theory"] for row in group if row["method"] == method]
                cells.append(f"{median(found):.2f} ({len(found)})" if found else "")
            medians[" ".join(map(str, key))] = median(row["of_theory"] for row in group)
            lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(cells)} |")
        lines += [
            "",
            "## What decides",
            "",
            "Rank correlation of measured over theoretical speedup with shares of the cut network's MACs.",
            "",
        ]
        lines += [f"| runtime | batch | {' | '.join(TRAITS.values())} | rows |", "| --- " * (3 + len(TRAITS)) + "|"]
        for key, group in grouped([row for row in rows if row["precision"] == "fp32"], "runtime", "batch"):
            found = (
                [spearmanr([row["of_theory"] for row in group], [row[trait] for row in group]).statistic for trait in TRAITS]
                if len(group) > 2
                else []
            )
            cells = [f"{value:+.2f}" if math.isfinite(value) else "no spread" for value in found] or ["too few"] * len(TRAITS)
            lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(cells)} | {len(group)} |")
        lines += [
            "",
            "## Networks (fp32, batch 1, a half of the MACs, widths as they come)",
            "",
            "| network | theory | " + " | ".join(RUNTIMES) + " | machine |",
            "| --- " * (3 + len(RUNTIMES)) + "|",
        ]
        chosen = [
            row for row in rows if (row["precision"], row["batch"], row["fraction"], row["method"]) == ("fp32", 1, 0.5, "as they come")
        ]
        for (name, which), group in grouped(chosen, "network", "machine"):
            found = {row["runtime"]: f"{row['speedup']:.2f} ({row['low']:.2f}-{row['high']:.2f})" for row in group}
            lines.append(f"| {name} | {group[0]['theoretical']:.2f} | {' | '.join(found.get(r, '') for r in RUNTIMES)} | {which} |")
    lines += ["", "## Machines", ""] + [
        f"- `{name}`: {value['provenance']['machine']['cpu']}, {len(value['rows'])} rows" for name, value in machines.items()
    ]
    lines += ["", f"Repeat a network with `python bench/theory_against_measurement.py {NETWORKS[0]}`.", ""]
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS / "README.md", "\n".join(lines))
    write_text(RESULTS / "picture.svg", picture(rows))
    return {"rows": len(rows), "networks": len({row["network"] for row in rows}), "median_of_theory": medians}


INTRODUCTION = (
    "Theory against measurement: what pruning gives",
    "A network that is cut to a half of its multiplications could run twice as fast; here is what it does. Speedups are ratios of times that were "
    "taken in turns, on one thread, with 95 % intervals; 1.00 in the first table is what theory promises. "
    "[theory_against_measurement.py](../../theory_against_measurement.py) says how rows are made, and how to add those of another machine.",
)


def grouped(rows: list[dict[str, Any]], *keys: str) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    found = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(row)
    return sorted(found.items(), key=lambda item: tuple(map(str, item[0])))


COLOURS = dict(zip(RUNTIMES, ("#0b62a0", "#a6361c", "#00694c"), strict=True))
WIDE, HIGH, EDGE = 640, 440, 56


def picture(rows: list[dict[str, Any]]) -> str:
    """Theoretical (x) against measured speedup (y), both logarithmic from 1/2 to 8, batch 1 in fp32: one dot a row; the line is what theory says."""

    def at(x: float, y: float) -> tuple[float, float]:
        return tuple(  # type: ignore[return-value]
            edge + sign * (min(max(math.log2(v), -1), 3) + 1) / 4 * (size - 2 * EDGE)
            for v, edge, sign, size in ((x, EDGE, 1, WIDE), (y, HIGH - EDGE, -1, HIGH))
        )

    shapes = [f'<rect width="{WIDE}" height="{HIGH}" fill="white"/>']
    for value in (0.5, 1, 2, 4, 8):
        (x, _), (_, y) = at(value, 1), at(1, value)
        shapes += [f'<path d="M{x:.1f} {EDGE}V{HIGH - EDGE}M{EDGE} {y:.1f}H{WIDE - EDGE}" stroke="#ddd"/>']
        shapes += [f'<text x="{x:.1f}" y="{HIGH - EDGE + 18}" text-anchor="middle">{value:g}x</text>']
        shapes += [f'<text x="{EDGE - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}x</text>']
    (x0, y0), (x1, y1) = at(0.5, 0.5), at(8, 8)
    shapes.append(f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="#888" stroke-dasharray="5 4"/>')
    for row in rows:
        if (row["precision"], row["batch"]) == ("fp32", 1):
            x, y = at(row["theoretical"], row["speedup"])
            title = f"{row['network']}, {row['method']}, {row['runtime']}: {row['speedup']:.2f}x of {row['theoretical']:.2f}x"
            shapes.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[row["runtime"]]}" fill-opacity="0.6"><title>{title}</title></circle>'
            )
    for i, (runtime, colour) in enumerate(COLOURS.items()):
        shapes.append(
            f'<circle cx="{EDGE + 16}" cy="{EDGE + 14 + 20 * i}" r="5" fill="{colour}"/><text x="{EDGE + 28}" y="{EDGE + 18 + 20 * i}">{runtime}</text>'
        )
    shapes.append(f'<text x="{WIDE / 2}" y="{HIGH - 14}" text-anchor="middle">theoretical speedup (MACs)</text>')
    shapes.append(f'<text transform="translate(16 {HIGH / 2}) rotate(-90)" text-anchor="middle">measured speedup, fp32, batch 1</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" font-family="sans-serif" font-size="13" fill="#222">'
    return "\n".join([head, *shapes, "</svg>", ""])


if __name__ == "__main__":
    main()
