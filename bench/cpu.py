"""Generated C++ against ONNX Runtime and OpenVINO on this CPU, for one image in fp32, with one and two threads.

    python bench/cpu.py                 in under eight minutes once compiled; writes bench/results/cpu.json and .md
    python bench/cpu.py --resume        keep the networks that the file has
    python bench/cpu.py --layers        a table of each network's layers, by themselves
    python bench/cpu.py --rehearse      everything but the figures: compiles what the run will need, and writes nothing

Each network's deployments are timed in turns; the fastest of ours and the fastest of the others are timed again, in turns, and their ratio
is what counts. Nothing else may run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import RESULTS, finish
from torch import Tensor, nn

import ltcompile as lt
from ltcompile import runtimes, timing
from ltcompile.core.deployment import Deployment
from ltcompile.engine.cpu import native, tuning
from ltcompile.engine.cpu.generate import generate
from ltcompile.graph.count import size
from ltcompile.lower import export_onnx, fold_batch_norm
from ltcompile.lower.lower import lower
from ltcompile.numerics import FP32_TOLERANCE, largest_error
from ltcompile.runtimes import Subject

VGG = {  # name -> widths of its five stages
    "VGG-16 at 0.9 %": ((8, 8), (8, 8), (16, 24, 16), (40, 56, 64), (56, 48, 56)),
    "VGG-16 at 5 %": ((16, 16), (24, 24), (56,) * 3, (112,) * 3, (112,) * 3),
    "VGG-16 at 8 %": ((8, 16), (32, 32), (80, 72, 64), (160, 168, 168), (168, 160, 168)),
    "VGG-16 at 20 %": ((32, 32), (56, 56), (112,) * 3, (216,) * 3, (216,) * 3),
    "odd widths": ((13, 15), (27, 29), (53, 55, 51), (109, 107, 111), (109, 107, 111)),
    "odd widths, rounded to 8": ((16, 16), (32, 32), (56, 56, 56), (112,) * 3, (112,) * 3),
}
ROUNDED = ("odd widths", "odd widths, rounded to 8")
PEAK_NETWORK = "VGG-16 at 20 %"
LARGE = ("MobileNetV2 at 224", "ResNet-18 at half, 224")
THREADS = (1, 2)
OTHERS = ("onnxruntime", "openvino")
SCREEN_S, SECONDS, TUNE_S = 0.6, 3.0, 20.0
BANDS = ((10e6, 1.8), (100e6, 1.3), (math.inf, 1.0))  # MACs up to which the ratio must be at least this
_PEAK = """
#include <time.h>
typedef float V __attribute__((vector_size(4 * LT_LANES)));
extern "C" double lt_peak() {
  double best = 0;
  for (int turn = 0; turn < 20; turn++) {
    timespec a, b;
    V sums[12], x = {}, y = {};
    for (int i = 0; i < 12; i++) sums[i] = V{} + (float)i;
    x += 0.999f, y += 0.5f;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (long n = 0; n < 200000; n++) {
      LT_UNROLL
      for (int i = 0; i < 12; i++) {
        sums[i] = sums[i] * x + y;
        asm volatile("" : "+r"(n));
      }
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    const double s = b.tv_sec - a.tv_sec + 1e-9 * (b.tv_nsec - a.tv_nsec), flops = 200000.0 * 12 * 2 * LT_LANES;
    volatile float sink = 0;
    for (int i = 0; i < 12; i++) sink = sink + sums[i][0];
    if (flops / s > best) best = flops / s;
  }
  return best;
}
"""


def networks(large: bool) -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    """Builders of the networks by name, with an image each."""
    import torchvision

    small = {name: lambda widths=widths: (_vgg(widths), torch.randn(1, 3, 32, 32)) for name, widths in VGG.items()}
    others = {
        "ResNet-20": lambda: (lt.build_model("resnet20", classes=10), torch.randn(1, 3, 32, 32)),
        "MobileNetV2 0.35 at 64": lambda: (torchvision.models.MobileNetV2(width_mult=0.35), torch.randn(1, 3, 64, 64)),
    }
    at_224 = {
        LARGE[0]: lambda: (torchvision.models.MobileNetV2(), torch.randn(1, 3, 224, 224)),
        LARGE[1]: lambda: (_half(torchvision.models.resnet18()), torch.randn(1, 3, 224, 224)),
    }
    return {**small, **others, **(at_224 if large else {})}


def _vgg(stages: tuple[tuple[int, ...], ...]) -> nn.Module:
    layers, channels = list[nn.Module](), 3
    for stage in stages:
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))


def _half(model: nn.Module) -> nn.Module:
    example = torch.randn(2, 3, 224, 224)
    return lt.cut(model, lt.plan(model, example, target_macs=0.5, align=8))


def calls(model: nn.Module, image: Tensor, folder: Path, tune_s: float) -> dict[str, timing.Call]:
    """What is timed, by name, each checked against PyTorch."""
    with torch.no_grad():
        expected = model(image)
    found = dict[str, timing.Call]()
    program = lower(model, image).program
    unit = generate(program, tuning.tune(program, tune_s, max(THREADS)), max(THREADS))
    for threads in THREADS:
        library, outputs = native.Library(unit, threads), torch.empty_like(expected)
        found[f"ltcompile, {threads}"] = _call(library, image, outputs)
        found[f"ltcompile, {threads}"]()
        _check(f"ltcompile, {threads}", outputs, expected)
    folded, _ = fold_batch_norm(model, image)
    export_onnx(folded, image, path := folder / "network.onnx")
    subject = Subject("the network", folded, path.read_bytes(), "fp32")
    for runtime in OTHERS:
        if reason := runtimes.unavailable(runtime, "cpu"):
            print(f"{runtime}: {reason}", flush=True)
            continue
        for threads in THREADS:
            session = runtimes.load(subject, Deployment("cpu", runtime, 1, "fp32", threads))
            bound = session.bind(image.numpy())
            bound.call()
            _check(f"{runtime}, {threads}", next(iter(bound.read().values())), expected)
            found[f"{runtime}, {threads}"] = bound.call
    return found


def _call(library: native.Library, image: Tensor, outputs: Tensor) -> timing.Call:
    run, x, y = library.run, image.data_ptr(), outputs.data_ptr()

    def call() -> Tensor:
        run(x, y, 1)
        return outputs  # which keeps its memory

    return call


def _check(name: str, answer: Any, expected: Tensor) -> None:
    if (error := largest_error(answer, expected)) > FP32_TOLERANCE:
        raise SystemExit(f"{name} is off by {error:.1e} of the largest output: nothing is timed")


def row(name: str, model: nn.Module, image: Tensor, tune_s: float, seconds: float) -> dict[str, Any]:
    """The times of all deployments of a network, and the ratio of the fastest others' to our fastest."""
    with tempfile.TemporaryDirectory() as folder:
        subjects = calls(model, image, Path(folder), tune_s)
    macs = size(model, image).macs
    screened = {key: float(np.median(ms)) for key, ms in timing.interleave(subjects, seconds=SCREEN_S if seconds else 0.01).items()}
    ours, other = (
        min((k for k in screened if k.startswith("ltcompile") == is_ours), key=screened.__getitem__) for is_ours in (True, False)
    )
    times = timing.interleave({key: subjects[key] for key in (ours, other)}, seconds=seconds or 0.01)
    ratio = timing.speedup(times[other], times[ours])
    us = {key: 1000 * float(np.median(ms)) for key, ms in times.items()}
    found = {"network": name, "macs": macs, "screened_us": {k: 1000 * v for k, v in screened.items()}, "ours": ours, "other": other}
    return {**found, "ours_us": us[ours], "other_us": us[other], "ratio": ratio}


def peak() -> float:
    """FLOP/s of one core: multiply-adds of registers."""
    text = "#include <stdint.h>\n#include <string.h>\n" + (tuning.INCLUDE / "vector.h").read_text() + _PEAK
    function = native.opened(native.compile_library(text)).lt_peak
    function.restype = ctypes.c_double
    return float(function())


def layer_table(model: nn.Module, image: Tensor) -> str:
    """Each dense layer of a network by itself, in one thread, in the tiles that are known."""
    program, flops = lower(model, image).program, peak()
    lines = ["| layer | filters | input | MMAC | us | GFLOP/s as counted | of the peak |", "|---" * 7 + "|"]
    for name, layer, us in tuning.layer_times(program, tuning.tune(program, 0, max(THREADS))):
        x, (filters, channels, *kernel) = layer.inputs[0], layer.op.weight.shape
        macs = math.prod(layer.op.out_size(x)) * layer.op.weight.size
        rate = 2 * macs / (1e-6 * us)
        sizes = f"{filters} of {channels}x{kernel[0]}x{kernel[1]} | {x.channels}x{x.height}x{x.width}"
        lines.append(f"| {name} | {sizes} | {macs / 1e6:.2f} | {us:.1f} | {rate / 1e9:.0f} | {rate / flops:.2f} |")
    return "\n".join(lines)


def claims(rows: dict[str, dict[str, Any]], flops: float) -> list[dict[str, Any]]:
    """What is wanted, and what was found with its interval."""
    found, least = [], 0.0
    for most, wanted in BANDS:
        ratios = [np.log(r["ratio"]) for n, r in rows.items() if least < r["macs"] <= most and n != ROUNDED[1]]
        if ratios:
            mean = [float(x) for x in np.exp(np.mean(ratios, axis=0))]
            band = f"{least / 1e6:g} to {most / 1e6:g} MMAC: geometric mean over the fastest other, {len(ratios)} networks"
            found.append({"claim": band, "wanted": wanted, "found": mean, "holds": mean[1] >= wanted})
        least = most
    if all(name in rows for name in ROUNDED):
        cost = rows[ROUNDED[0]]["ours_us"] / rows[ROUNDED[1]]["ours_us"]
        found.append({"claim": "odd widths over the next multiple of 8, at most", "wanted": 1.05, "found": [cost], "holds": cost <= 1.05})
    if PEAK_NETWORK in rows:
        row = rows[PEAK_NETWORK]
        share = 2 * row["macs"] / (row["screened_us"]["ltcompile, 1"] * 1e-6) / flops
        text = f"{PEAK_NETWORK}: products over those of one core's peak ({flops / 1e9:.0f} GFLOP/s); Winograd needs fewer than it counts"
        found.append({"claim": text, "wanted": 0.75, "found": [share], "holds": share >= 0.75})
    return found


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    names = list(dict.fromkeys(k for r in result["rows"].values() for k in r["screened_us"]))
    lines = [f"# Generated C++ on a CPU\n\n{result['provenance']['machine']['cpu']}, one image, fp32; microseconds by threads.\n"]
    lines += [f"| network | MMAC | {' | '.join(names)} | ratio of the fastest (95 %) |", "|---" * (len(names) + 3) + "|"]
    for name, r in result["rows"].items():
        times = " | ".join(f"{r['screened_us'][k]:.0f}" if k in r["screened_us"] else "" for k in names)
        lines.append(f"| {name} | {r['macs'] / 1e6:.1f} | {times} | {r['ratio'][0]:.2f} ({r['ratio'][1]:.2f} to {r['ratio'][2]:.2f}) |")
    lines += ["", "| claim | wanted | found | holds |", "|---|---|---|---|"]
    for c in result["claims"]:
        found = f"{c['found'][0]:.2f}" + (f" ({c['found'][1]:.2f} to {c['found'][2]:.2f})" if len(c["found"]) > 1 else "")
        lines.append(f"| {c['claim']} | {c['wanted']} | {found} | {'yes' if c['holds'] else 'no'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true", help="keep the networks that the file has")
    parser.add_argument("--rehearse", action="store_true", help="compile and check only")
    parser.add_argument("--layers", action="store_true", help="print a table of the networks' layers instead")
    parser.add_argument("--networks", nargs="*", help="some of them, by name")
    parser.add_argument("--large", action="store_true", help="networks of 224x224 images too")
    parser.add_argument("--tune-seconds", type=float, default=TUNE_S, help="for each network and number of threads")
    arguments = parser.parse_args()
    path = RESULTS / "cpu.json"
    rows: dict[str, Any] = json.loads(path.read_text())["rows"] if arguments.resume and path.exists() else {}
    for name, build in networks(arguments.large).items():
        if name in rows or (arguments.networks and name not in arguments.networks):
            continue
        torch.manual_seed(0)
        model, image = build()
        if arguments.layers:
            print(f"{name}\n{layer_table(model.eval(), image)}\n", flush=True)
            continue
        found = row(name, model.eval(), image, arguments.tune_seconds, 0 if arguments.rehearse else SECONDS)
        print(
            name, f"{found['macs'] / 1e6:.1f} MMAC", {k: round(v, 1) for k, v in found["screened_us"].items()}, found["ratio"], flush=True
        )
        rows[name] = found
        if not arguments.rehearse:
            result = {"bench": "cpu", "rows": rows, "claims": claims(rows, peak())}
            finish("cpu", result)
            (RESULTS / "cpu.md").write_text(markdown(json.loads(path.read_text())))
    if arguments.rehearse and rows:
        print(claims(rows, peak()))


if __name__ == "__main__":
    main()
