"""What structured pruning promises and what it gives: measured over theoretical speedup of many networks, in several runtimes.

    python bench/theory_against_measurement.py --minutes 40         # this machine; run it again to continue
    python bench/theory_against_measurement.py torchvision:resnet18 # these networks, again
    python bench/theory_against_measurement.py --by-time            # then: widths planned by time, a few minutes a network
    python bench/theory_against_measurement.py --only mnn:int8      # in this runtime and precision, where networks have no such times
    python bench/theory_against_measurement.py --page               # the page and the picture alone, of whatever rows there are

Each network is cut to a half and a quarter of its MACs by the magnitude of its filters: to widths as they come, to multiples of 8 and of 16.
With --by-time, networks that take at most 20 ms for an image are profiled in ONNX Runtime, and planned for a half and a quarter of their time
by that profile. All cuts of a network and the network itself run in turns, on one thread, in ONNX Runtime, OpenVINO and MNN, at batches of 1
and, where one image takes at most 20 ms, 16, in fp32 and int8; answers are compared first: in fp32 with PyTorch, in int8 with fp32, within
the bounds of `numerics`. Weights are fresh, and int8 takes its ranges from noise, which changes no time; in MNN, whose converter reads no quantised
ONNX file, its own quantiser takes them.

Rows go to bench/results/theory/MACHINE.json as they come, networks of all families in turns, so that a part of a run is balanced. Rows of other
machines are welcome: run it, and commit the file that it writes. README.md and picture.svg next to it are made of all files.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from _common import machine
from _theory_page import write_page
from _theory_rows import BATCHES, BY_TIME, METHODS, NETWORKS, PRECISIONS, RESULTS, RUNTIMES, TRAITS, Row, read, write

FRACTIONS = (0.5, 0.25)
PROFILED = "cpu:onnxruntime:b1:fp32:t1"
SECONDS = 0.4  # a network in a cell; at least ten blocks run
SLOW_MS = 20.0  # at batch 1 in fp32: batches of 16 and profiles are left out
LIMIT_S = 1200  # of a network
FEW_BYTES = 10.0  # MACs for each byte read or written, below which a layer counts as bound by memory
MNN_IMAGES, MNN_RANGES = 1, "KL"  # what MNN's quantiser takes ranges of, and how
TOO_SLOW = f"a batch of 1 takes more than {SLOW_MS:g} ms"
SETTINGS = {"threads": 1, "seconds": SECONDS, "criterion": "l1"}
CELLS = [(runtime, precision, batch) for runtime in RUNTIMES for precision in PRECISIONS for batch in BATCHES]

Cell = tuple[str, str, int]
Files = dict[tuple[str, str], Path | str]  # of a network and kind: the file, or why there is none


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="networks to run, again where there are rows of them")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no network after so many")
    parser.add_argument("--by-time", action="store_true", help="plan by measured time, and run those cuts")
    parser.add_argument("--only", metavar="RUNTIME:PRECISION", choices=sorted({f"{r}:{p}" for r, p, _ in CELLS}), help="other rows stay")
    parser.add_argument("--page", action="store_true", help="make the page alone")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        cells = [cell for cell in CELLS if arguments.only in (None, f"{cell[0]}:{cell[1]}")]
        for row in rows_of(arguments.names[0], arguments.by_time, cells):
            print(json.dumps(row), flush=True)
        return
    began, path = time.monotonic(), RESULTS / f"{machine()}.json"
    for name in [] if arguments.page else arguments.names or NETWORKS:
        done: list[Row] = read(path)["rows"]
        others = [row for row in done if not is_made(row, name, arguments.by_time, arguments.only)]
        there = [row for row in done if row not in others]
        if not arguments.names and (there if arguments.only is None else any("reason" not in row for row in there)):
            continue
        if time.monotonic() - began > 60 * arguments.minutes:
            break
        slow = arguments.by_time and any(row["network"] == name and is_slow(row) for row in done)
        rows = [{"network": name, "method": BY_TIME, "reason": TOO_SLOW}] if slow else in_process(name, arguments.by_time, arguments.only)
        write(path, SETTINGS, [*others, *rows])
        print(f"{name}: {sum('reason' not in row for row in rows)} rows, {time.monotonic() - began:.0f} s", flush=True)
    print(json.dumps(write_page()))


def is_made(row: Row, name: str, by_time: bool, only: str | None) -> bool:
    """Whether a run of a network, or of it in one runtime and precision, makes this row."""
    planned = row["network"] == name and (row["method"] == BY_TIME) == by_time
    return planned and only in (None, f"{row.get('runtime')}:{row.get('precision')}")


def is_slow(row: Row) -> bool:
    """Whether it shows that the network takes too long for batches of 16 and for profiles."""
    return (row.get("runtime"), row.get("precision"), row.get("batch")) == ("onnxruntime", "fp32", 1) and row.get("dense_ms", 0) > SLOW_MS


def in_process(name: str, by_time: bool, only: str | None) -> list[Row]:
    """The rows of a network, from a process of its own; a row with the reason where that fails."""
    command = [sys.executable, __file__, name, "--one", *(["--by-time"] if by_time else []), *(["--only", only] if only else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        text, failed = done.stdout, done.returncode
        reason = (done.stderr.strip().splitlines() or [f"it ended with {failed}"])[-1][:300]
    except subprocess.TimeoutExpired as error:
        text, failed, reason = (error.stdout or b"").decode(), 1, f"it took more than {LIMIT_S} s"
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    about = {"network": name, "method": BY_TIME if by_time else "all"}
    about |= dict(zip(("runtime", "precision"), only.split(":"), strict=True)) if only else {}
    rows = [row for row in rows if is_made(row, name, by_time, only)]
    return [*rows, {**about, "reason": reason}] if failed or not rows else rows


def network_of(name: str) -> tuple[Any, Any]:
    """A network in eval mode, and an input of its usual size."""
    import torch

    import ltcompile as lt

    kind, _, which = name.partition(":")
    torch.manual_seed(0)
    if kind == "ours":
        size = 64 if which == "centernet-small" else 32
        return lt.build_model(which, 10, 3, size).eval(), torch.randn(1, 3, size, size)
    if kind == "torchvision":
        size = 299 if which == "inception_v3" else 224
        return lt.build_model(name, 1000, 3, size).eval(), torch.randn(1, 3, size, size)
    if kind == "yolo":
        import _public_networks

        model, _ = _public_networks.yolo(which)
        model.model[-1].dynamic = True  # else its forward pass compares the batch with that of the last call
        return model.eval(), torch.randn(1, 3, 320, 320)
    import segmentation_models_pytorch as smp

    decoder, encoder = which.split("-", 1)
    return getattr(smp, decoder)(encoder, encoder_weights=None, classes=5).eval(), torch.randn(1, 3, 224, 224)


def hold_signals(model: Any, images: Any) -> None:
    """Give each batch norm the mean square of all that it sees as its variance.

    Fresh ones let signals fade, to 3e-9 at the end of a MobileNetV2, and MNN's quantiser takes a tensor below 1e-5 for zero. One factor a layer
    changes no time, no ranking of filters, and where activations are ReLUs no error relative to the outputs.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    def hook(norm: Any, inputs: Any) -> None:
        norm.running_var.fill_(inputs[0].square().mean())

    handles = [norm.register_forward_pre_hook(hook) for norm in model.modules() if isinstance(norm, _BatchNorm)]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()


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


def rows_of(name: str, by_time: bool, cells: list[Cell]) -> Iterator[Row]:
    """The rows of a network."""
    import ltcompile as lt
    from ltcompile.lower.answers import probe

    warnings.simplefilter("ignore")
    model, example = network_of(name)
    hold_signals(model, probe(model, example, max(BATCHES)).tensors[0])
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
    if not facts:
        return
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


def measured(networks: dict[str, Any], facts: dict[str, Row], example: Any, folder: Path, cells: list[Cell]) -> Iterator[Row]:
    """Rows of each runtime, precision and batch of `cells`; the cuts of one cell run in turns with the dense network."""
    from ltcompile.lower.answers import probe

    images = probe(networks["dense"], example, max(BATCHES)).tensors[0].numpy()
    files, expected = written(networks, example, images, folder, cells)
    slow = set[str]()
    for runtime, precision, batch in cells:
        cell: Row = {"runtime": runtime, "precision": precision, "batch": batch}
        if runtime in slow and batch > 1:
            yield {**next(iter(facts.values()), {}), **cell, "reason": TOO_SLOW}
            continue
        held = {key: files[key, kind_of(runtime, precision)] for key in networks}
        times, errors, reasons = timed(held, expected, images[:batch], **cell)
        if "dense" not in times:
            reasons |= dict.fromkeys(facts, f"dense: {reasons['dense']}")
        elif batch == 1 and median(times["dense"].flat) > SLOW_MS:
            slow.add(runtime)
        for key, about in facts.items():
            if key in reasons:
                yield {**about, **cell, "reason": reasons[key][:300]}
            else:
                yield row_of(about, cell, times["dense"], times[key], errors[key])


def kind_of(runtime: str, precision: str) -> str:
    """Which file of a network runs there: an ONNX file in fp32 or int8, or MNN's own in int8."""
    return precision if precision == "fp32" or runtime != "mnn" else runtime


def written(networks: dict[str, Any], example: Any, images: Any, folder: Path, cells: list[Cell]) -> tuple[Files, dict[str, Any]]:
    """The files of each network that `cells` run, or why there is none; and what PyTorch answers to the images."""
    from ltcompile.errors import LtcompileError
    from ltcompile.lower import export_onnx, fold_batch_norm
    from ltcompile.lower.answers import of_network, probe

    files, expected = Files(), {}
    for at, (key, network) in enumerate(networks.items()):
        folded = fold_batch_norm(network, example)[0].eval()
        export_onnx(folded, example, plain := folder / f"{at}.onnx", input_names=("images",))
        expected[key] = [value.numpy() for value in of_network(folded)(probe(folded, example, max(BATCHES))).values()]
        files[key, "fp32"] = plain
        for kind in {kind_of(runtime, precision) for runtime, precision, _ in cells} - {"fp32"}:
            try:
                files[key, kind] = in_int8(plain, images, kind)
            except LtcompileError as error:
                files[key, kind] = str(error)
    return files, expected


def in_int8(plain: Path, images: Any, kind: str) -> Path:
    """Write an fp32 ONNX file in int8, as ONNX or by MNN's quantiser. Raises LtcompileError."""
    import torch

    from ltcompile.lower.quantize import Quantizer, Scheme
    from ltcompile.runtimes.mnn import quantize

    if kind == "mnn":
        quantize(plain, path := plain.with_suffix(".mnn"), {"images": images[:MNN_IMAGES]}, MNN_RANGES)
    else:
        Quantizer(plain, torch.from_numpy(images)).write(Scheme(), path := plain.with_suffix(".int8.onnx"))
    return path


def row_of(about: Row, cell: Row, dense: Any, small: Any, error: float) -> Row:
    from ltcompile.timing import speedup

    ratio, low, high = speedup(dense, small)
    times = {"dense_ms": median(dense.flat), "ms": median(small.flat)}
    return {**about, **cell, **times, "speedup": ratio, "low": low, "high": high, "error": error, "of_theory": ratio / about["theoretical"]}


def timed(
    files: dict[str, Any], expected: dict[str, Any], images: Any, runtime: str, precision: str, batch: int
) -> tuple[dict[str, Any], dict[str, float], dict[str, str]]:
    """Times of all files in turns, and their errors; and why others cannot be timed: the runtime does not run them, or answers otherwise."""
    from ltcompile.core.deployment import Deployment
    from ltcompile.errors import LtcompileError, Unavailable
    from ltcompile.runtimes import Subject, load_apart
    from ltcompile.timing import interleave

    calls, errors, reasons = {}, {}, {}
    for key, file in files.items():
        try:
            if isinstance(file, str):
                raise Unavailable(file)
            subject = Subject(key, onnx=file) if file.suffix == ".onnx" else Subject(key, file=file)
            bound = load_apart(subject, Deployment("cpu", runtime, batch, precision, 1)).bind(images)
            bound.call()
            errors[key], calls[key] = error_of(list(bound.read().values()), [x[:batch] for x in expected[key]], precision), bound.call
        except LtcompileError as error:
            reasons[key] = str(error)
    try:
        return interleave(calls, seconds=SECONDS) if "dense" in calls else {}, errors, reasons
    except LtcompileError as error:  # their process ended, maybe with one of those that have a reason
        if not reasons:
            return {}, errors, {"dense": str(error)}
        times, errors, more = timed({key: files[key] for key in calls}, expected, images, runtime, precision, batch)
        return times, errors, reasons | more


def error_of(found: list[Any], expected: list[Any], precision: str) -> float:
    """The largest error, of the largest output. Raises Disagreement where it is more than `precision` explains."""
    from ltcompile import numerics
    from ltcompile.errors import Disagreement

    if len(found) != len(expected):
        raise Disagreement(f"it has {len(found)} outputs, not {len(expected)}")
    error = max(numerics.largest_error(y, x) for y, x in zip(found, expected, strict=True))
    if reason := numerics.refusal_of(error, precision):
        raise Disagreement(reason)
    return float(error)


if __name__ == "__main__":
    main()
