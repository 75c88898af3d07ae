"""Each dense layer of networks by itself, in one thread and in the tiles that are known: its share of a core's measured peak.

    python bench/cpu_layers.py --networks "VGG-16 at 20 %" "VGG-16, whole"

Run bench/cpu.py on these networks first, which measures tiles. Prints tables, and writes bench/results/cpu/MACHINE.svg: a bar for each layer.
"""

from __future__ import annotations

import argparse
import ctypes
import math
from typing import Any

import torch
from _common import RESULTS, machine
from _cpu_networks import FIFTH, networks
from torch import Tensor, nn

from ltcompile.engine.cpu import native, tuning
from ltcompile.lower.lower import lower
from ltcompile.paths import write_text

THREADS = 2  # that the tiles were measured for
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


def peak() -> float:
    """FLOP/s of one core: multiply-adds of registers."""
    text = "#include <stdint.h>\n#include <string.h>\n" + (tuning.INCLUDE / "vector.h").read_text() + _PEAK
    function = native.opened(native.compile_library(text)).lt_peak
    function.restype = ctypes.c_double
    return float(function())


def layers(model: nn.Module, image: Tensor, flops: float) -> list[dict[str, Any]]:
    """Each dense layer of a network by itself, in one thread, in the tiles that are known."""
    program, found = lower(model, image).program, list[dict[str, Any]]()
    for name, layer, us in tuning.layer_times(program, tuning.tune(program, 0, THREADS)):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=[FIFTH], choices=list(networks()), metavar="NAME")
    flops, found = peak(), dict[str, list[dict[str, Any]]]()
    print(f"one core's peak: {flops / 1e9:.0f} GFLOP/s")
    for name in parser.parse_args().networks:
        torch.manual_seed(0)
        model, image = networks()[name]()
        found[name] = layers(model.eval(), image, flops)
        print(f"{name}\n{layer_table(found[name])}\n", flush=True)
    write_text(RESULTS / "cpu" / f"{machine()}.svg", picture(found))


if __name__ == "__main__":
    main()
