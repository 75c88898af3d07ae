"""Each dense layer of networks by itself, in one thread and in the tiles that are known: its share of a core's roofline.

    python bench/cpu_layers.py --networks "VGG-16 at 20 %" "VGG-16, whole"

Run bench/cpu.py on these networks first, which measures tiles. The roofline is the longer one of what a core's measured
peak of products and its measured speed of reading so many weights, again and again, allow. Writes tables to bench/results/cpu/MACHINE-layers.md
and a picture to MACHINE.svg: a bar for each layer.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import shlex
from collections.abc import Callable
from typing import Any, cast

import torch
from _common import RESULTS, machine
from _cpu_networks import FIFTH, networks
from torch import Tensor, nn

from ltcompile.core.records import cpu_name
from ltcompile.engine.cpu import native, tuning
from ltcompile.engine.cpu.code import aligned
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
extern "C" double lt_read(const float *from, long floats) {
  double least = 1e9;
  for (int turn = 0; turn < 20; turn++) {
    timespec a, b;
    V sums[8] = {};
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (long n = 0; n + 8 * LT_LANES <= floats; n += 8 * LT_LANES) {
      LT_UNROLL
      for (int i = 0; i < 8; i++) sums[i] += *(const V *)(from + n + i * LT_LANES);
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    const double s = b.tv_sec - a.tv_sec + 1e-9 * (b.tv_nsec - a.tv_nsec);
    volatile float sink = 0;
    for (int i = 0; i < 8; i++) sink = sink + sums[i][0];
    if (s < least) least = s;
  }
  return least;
}
"""


def _function(name: str) -> Callable[..., float]:
    text = "#include <stdint.h>\n#include <string.h>\n" + (tuning.INCLUDE / "vector.h").read_text() + _PEAK
    function = getattr(native.opened(native.compile_library(text)), name)
    function.restype = ctypes.c_double
    return cast(Callable[..., float], function)


def peak() -> float:
    """FLOP/s of one core: multiply-adds of registers."""
    return _function("lt_peak")()


def reading_s(floats: int) -> float:
    """The least seconds in which one core reads so many floats, where it has read them before."""
    weights = aligned(floats)
    weights.fill(1)  # memory that was never written is one page of zeros
    return _function("lt_read")(ctypes.c_void_p(weights.ctypes.data), ctypes.c_long(floats))


def layers(model: nn.Module, image: Tensor, flops: float) -> list[dict[str, Any]]:
    """Each dense layer of a network by itself, in one thread, in the tiles that are known."""
    program, found = lower(model, image).program, list[dict[str, Any]]()
    for name, layer, us in tuning.layer_times(program, tuning.tune(program, 0, THREADS)):
        x, (filters, channels, *kernel) = layer.inputs[0], layer.op.weight.shape
        macs = math.prod(layer.op.out_size(x)) * layer.op.weight.size
        sizes = {"filters": f"{filters} of {channels}x{kernel[0]}x{kernel[1]}", "input": f"{x.channels}x{x.height}x{x.width}"}
        products_us, weights_us = 1e6 * 2 * macs / flops, 1e6 * reading_s(layer.op.weight.size)
        row = {
            "layer": name,
            **sizes,
            "macs": macs,
            "weights": layer.op.weight.size,
            "us": us,
            "products_us": products_us,
            "weights_us": weights_us,
        }
        found.append({**row, "of_roofline": max(products_us, weights_us) / us})
    return found


def layer_table(rows: list[dict[str, Any]]) -> str:
    head = ("layer", "filters", "input", "MMAC", "MB of weights", "us", "us of products", "us of reading", "of the roofline")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for r in rows:
        times = " | ".join(f"{r[name]:.1f}" for name in ("us", "products_us", "weights_us"))
        lines.append(
            f"| {r['layer']} | {r['filters']} | {r['input']} | {r['macs'] / 1e6:.2f} | {4e-6 * r['weights']:.2f} | {times} | {r['of_roofline']:.2f} |"
        )
    total, least = sum(r["us"] for r in rows), sum(max(r["products_us"], r["weights_us"]) for r in rows)
    lines.append(f"| all |  |  | {sum(r['macs'] for r in rows) / 1e6:.2f} |  | {total:.1f} |  |  | {least / total:.2f} |")
    return "\n".join(lines)


def picture(found: dict[str, list[dict[str, Any]]]) -> str:
    """A bar for each layer, as wide as its share of the network's time and as high as its share of the roofline, which is the line."""
    width, height, gap, parts = 640, 80, 40, list[str]()
    for at, (name, rows) in enumerate(found.items()):
        bottom, left, total = (at + 1) * (height + gap), 0.0, sum(r["us"] for r in rows)
        parts.append(f'<text x="0" y="{bottom - height - 14}">{name}: {total:.0f} us in dense layers</text>')
        for r in rows:
            wide, high = width * r["us"] / total, min(r["of_roofline"], 1.25) * height / 1.25
            title = f"{r['layer']}: {r['filters']}, {r['us']:.1f} us, {r['of_roofline']:.0%} of the roofline"
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
    arguments = parser.parse_args()
    flops, found, parts = peak(), dict[str, list[dict[str, Any]]](), list[str]()
    for name in arguments.networks:
        torch.manual_seed(0)
        model, image = networks()[name]()
        found[name] = layers(model.eval(), image, flops)
        parts.append(f"## {name}\n\n{layer_table(found[name])}\n")
        print(parts[-1], flush=True)
    command = f"python bench/cpu_layers.py --networks {shlex.join(arguments.networks)}"
    head = (
        f"# Dense layers by themselves\n\n{cpu_name()}, one thread, warm caches; one core's peak: {flops / 1e9:.0f} GFLOP/s of products. Winograd "
        f"needs 16 of the 36 products\nof a 3x3 layer, so that a share may be above 1. Written by `{command}`.\n\n![shares]({machine()}.svg)\n"
    )
    write_text(RESULTS / "cpu" / f"{machine()}-layers.md", "\n".join([head, *parts]))
    write_text(RESULTS / "cpu" / f"{machine()}.svg", picture(found))


if __name__ == "__main__":
    main()
