"""Generated C++ against the other runtimes on this CPU, with one and two threads; by default for one image in fp32.

    python bench/cpu.py                 in under eight minutes once compiled; writes bench/results/cpu.json and .md
    python bench/cpu.py --resume        keep the rows that the file has, and measure those that it lacks
    python bench/cpu.py --resume --precisions int8 --batches 1 8 64 --networks "VGG-16 at 5 %"
    python bench/cpu.py --layers        a table of each network's layers, by themselves, and a picture, bench/results/cpu-layers.svg
    python bench/cpu.py --start         seconds to generate and compile VGG-16, and to load a compiled engine: cpu-start.json
    python bench/cpu.py --rehearse      everything but the figures: compiles what the run will need, and writes nothing

Each network's deployments are timed in turns; the fastest of ours and the fastest of the others are timed again, in turns, and their ratio
is what counts. Nothing else may run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from ltcompile.engine.cpu.bf16 import in_bf16
from ltcompile.engine.cpu.generate import generate
from ltcompile.engine.host import make_source
from ltcompile.errors import Crashed, Disagreement, InvalidSetting, Unavailable
from ltcompile.graph.count import size
from ltcompile.lower import export_onnx, fold_batch_norm
from ltcompile.lower.lower import lower
from ltcompile.numerics import TOLERANCES, largest_error
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
WHOLE = "VGG-16, whole"
MORE = ("ResNet-56 at half", "U-Net at half, 64", WHOLE)
LARGE = ("MobileNetV2 at 224", "ResNet-18 at half, 224", "MobileNetV2 at half, 224")
THREADS = (1, 2)
IN_PROCESS = ("onnxruntime", "openvino")
OTHERS = (*IN_PROCESS, "mnn", "ncnn", "tract")  # those that are there, the last three in processes of their own
CALIBRATED = 64  # random images from which int8 takes its ranges
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


def networks(more: bool, large: bool) -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    """Builders of the networks by name, with an image each."""
    import torchvision

    small = {name: lambda widths=widths: (_vgg(widths), torch.randn(1, 3, 32, 32)) for name, widths in VGG.items()}
    others = {
        "ResNet-20": lambda: (lt.build_model("resnet20", classes=10), torch.randn(1, 3, 32, 32)),
        "MobileNetV2 0.35 at 64": lambda: (torchvision.models.MobileNetV2(width_mult=0.35), torch.randn(1, 3, 64, 64)),
    }
    halves = {
        MORE[0]: lambda: _half(lt.build_model("resnet56", classes=10), 32),
        MORE[1]: lambda: _half(lt.build_model("unet", classes=3), 64),
        WHOLE: lambda: (_vgg(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)), torch.randn(1, 3, 32, 32)),
    }
    at_224 = {
        LARGE[0]: lambda: (torchvision.models.MobileNetV2(), torch.randn(1, 3, 224, 224)),
        LARGE[1]: lambda: _half(torchvision.models.resnet18(), 224),
        LARGE[2]: lambda: _half(torchvision.models.mobilenet_v2(), 224),
    }
    return {**small, **others, **(halves if more else {}), **(at_224 if large else {})}


def _vgg(stages: tuple[tuple[int, ...], ...]) -> nn.Module:
    layers, channels = list[nn.Module](), 3
    for stage in stages:
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))


def _half(model: nn.Module, side: int) -> tuple[nn.Module, Tensor]:
    example = torch.randn(2, 3, side, side)
    return lt.cut(model, lt.plan(model, example, target_macs=0.5, align=8)), example[:1]


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
        program, data = source.single, source.onnx
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
    found = {"network": case.name, "macs": macs, "precision": case.precision, "batch": len(case.images)}
    found |= {"screened_us": {k: 1000 * v for k, v in screened.items()}, "ours": ours, "other": other}
    return {**found, "ours_us": us[ours], "other_us": us[other], "ratio": ratio}


def peak() -> float:
    """FLOP/s of one core: multiply-adds of registers."""
    text = "#include <stdint.h>\n#include <string.h>\n" + (tuning.INCLUDE / "vector.h").read_text() + _PEAK
    function = native.opened(native.compile_library(text)).lt_peak
    function.restype = ctypes.c_double
    return float(function())


def layers(model: nn.Module, image: Tensor, flops: float) -> list[dict[str, Any]]:
    """Each dense layer of a network by itself, in one thread, in the tiles that are known."""
    program, found = lower(model, image).program, list[dict[str, Any]]()
    for name, layer, us in tuning.layer_times(program, tuning.tune(program, 0, max(THREADS))):
        x, (filters, channels, *kernel) = layer.inputs[0], layer.op.weight.shape
        macs = math.prod(layer.op.out_size(x)) * layer.op.weight.size
        sizes = {"filters": f"{filters} of {channels}x{kernel[0]}x{kernel[1]}", "input": f"{x.channels}x{x.height}x{x.width}"}
        found.append({"layer": name, **sizes, "macs": macs, "us": us, "of_peak": 2 * macs / (1e-6 * us) / flops})
    return found


def layer_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| layer | filters | input | MMAC | us | of the peak, as counted |", "|---" * 6 + "|"]
    for r in rows:
        lines.append(f"| {r['layer']} | {r['filters']} | {r['input']} | {r['macs'] / 1e6:.2f} | {r['us']:.1f} | {r['of_peak']:.2f} |")
    return "\n".join(lines)


def picture(found: dict[str, list[dict[str, Any]]]) -> str:
    """A bar for each layer, as wide as its share of the network's time and as high as its share of the peak; the line is the peak."""
    width, height, gap, parts = 640, 80, 40, list[str]()
    for at, (name, rows) in enumerate(found.items()):
        bottom, left, total = (at + 1) * (height + gap), 0.0, sum(r["us"] for r in rows)
        parts.append(f'<text x="0" y="{bottom - height - 14}">{name}: {total:.0f} us in dense layers</text>')
        for r in rows:
            wide, high = width * r["us"] / total, min(r["of_peak"], 1.25) * height / 1.25
            title = f"{r['layer']}: {r['filters']}, {r['us']:.1f} us, {r['of_peak']:.0%} of the peak"
            parts.append(
                f'<rect x="{left:.1f}" y="{bottom - high:.1f}" width="{max(wide - 1, 0.5):.1f}" height="{high:.1f}"><title>{title}</title></rect>'
            )
            left += wide
        parts.append(f'<path d="M0 {bottom - height / 1.25:.1f}h{width}"/>')
    style = "rect{fill:#4878a8}path{stroke:#c33;stroke-dasharray:4}text{font:13px sans-serif}"
    size = f'width="{width}" height="{len(found) * (height + gap) + 10}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>{"".join(parts)}</svg>\n'


_LOAD = """
import sys, time, torch, ltcompile, ltcompile.engine.build
start = time.perf_counter()
engine = ltcompile.load_engine(sys.argv[1])
print(time.perf_counter() - start, engine.decisions[1].by)
"""


def starts() -> dict[str, Any]:
    """Seconds to generate and compile, with an empty cache, and to load the engine of each in new processes once it is compiled."""
    found = dict[str, Any]()
    for name in (WHOLE, PEAK_NETWORK, "VGG-16 at 5 %"):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            model, image = networks(True, False)[name]()
            program = lower(model.eval(), image).program
            before = time.perf_counter()
            unit = generate(program, threads=max(THREADS))
            generated = time.perf_counter()
            native.Library(unit, 1)
            compiled = time.perf_counter()
            lt.compile(model, torch.randn(8, *image.shape[1:]), batch=[1], tune_seconds=0).save(path := Path(folder) / "network.engine")
            loads = [
                subprocess.run([sys.executable, "-c", _LOAD, str(path)], capture_output=True, text=True, check=True).stdout
                for _ in range(6)
            ]
        seconds = sorted(float(line.split(" ", 1)[0]) for line in loads[1:])
        found[name] = {
            "generate_s": generated - before,
            "compile_s": compiled - generated,
            "load_s": seconds,
            "by": loads[0].split(" ", 1)[1].strip(),
        }
        print(name, found[name], flush=True)
    return found


def claims(rows: dict[str, dict[str, Any]], flops: float) -> list[dict[str, Any]]:
    """What is wanted, and what was found with its interval."""
    found, least = [], 0.0
    for most, wanted in BANDS:
        for precision in ("fp32", "int8"):
            single = {n: r for n, r in rows.items() if r.get("precision", "fp32") == precision and r.get("batch", 1) == 1}
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
    if PEAK_NETWORK in rows:
        row = rows[PEAK_NETWORK]
        share = 2 * row["macs"] / (row["screened_us"]["ltcompile, 1"] * 1e-6) / flops
        text = f"{PEAK_NETWORK}: products over those of one core's peak ({flops / 1e9:.0f} GFLOP/s); Winograd needs fewer than it counts"
        found.append({"claim": text, "wanted": 0.75, "found": [share], "holds": share >= 0.75})
    return found


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    names = list(dict.fromkeys(k for r in result["rows"].values() for k in r["screened_us"]))
    lines = [
        f"# Generated C++ on a CPU\n\n{result['provenance']['machine']['cpu']}, one image in fp32 where nothing else is said; microseconds by threads.\n"
    ]
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
    parser.add_argument("--more", action="store_true", help="ResNet-56 and a U-Net pruned to half, and the whole VGG-16, too")
    parser.add_argument("--large", action="store_true", help="networks of 224x224 images too")
    parser.add_argument("--precisions", nargs="*", default=["fp32"], choices=("fp32", "bf16", "int8"))
    parser.add_argument("--batches", nargs="*", type=int, default=[1])
    parser.add_argument("--start", action="store_true", help="measure generation, compilation and loading instead")
    parser.add_argument("--tune-seconds", type=float, default=TUNE_S, help="for each network and number of threads")
    arguments = parser.parse_args()
    if arguments.start:
        return finish("cpu-start", {"bench": "cpu-start", "networks": starts()})
    path = RESULTS / "cpu.json"
    rows: dict[str, Any] = json.loads(path.read_text())["rows"] if arguments.resume and path.exists() else {}
    chosen = {
        n: build for n, build in networks(arguments.more, arguments.large).items() if not arguments.networks or n in arguments.networks
    }
    if arguments.layers:
        return _layers(chosen)
    for name, build in chosen.items():
        for precision, batch in ((precision, batch) for precision in arguments.precisions for batch in arguments.batches):
            torch.manual_seed(0)
            model, image = build()
            case = Case(name, model.eval(), torch.cat([image, torch.randn(batch - 1, *image.shape[1:])]), precision)
            if case.key in rows:
                continue
            found = row(case, arguments.tune_seconds, 0 if arguments.rehearse else SECONDS)
            rounded = {k: round(v, 1) for k, v in found["screened_us"].items()}
            print(case.key, f"{found['macs'] / 1e6:.1f} MMAC", rounded, found["ratio"], flush=True)
            rows[case.key] = found
            if not arguments.rehearse:
                finish("cpu", {"bench": "cpu", "rows": rows, "claims": claims(rows, peak())})
                (RESULTS / "cpu.md").write_text(markdown(json.loads(path.read_text())))
    if arguments.rehearse and rows:
        print(claims(rows, peak()))


def _layers(chosen: dict[str, Callable[[], tuple[nn.Module, Tensor]]]) -> None:
    flops, found = peak(), dict[str, list[dict[str, Any]]]()
    for name, build in chosen.items():
        torch.manual_seed(0)
        model, image = build()
        found[name] = layers(model.eval(), image, flops)
        print(f"{name}\n{layer_table(found[name])}\n", flush=True)
    (RESULTS / "cpu-layers.svg").write_text(picture(found))


if __name__ == "__main__":
    main()
