"""Our convolution against cuDNN's on VGG-16's shapes, each at its best configuration: a line of JSON a shape, in DIR/conv.jsonl.

    python bench/gpu_conv.py --out DIR

fp16, with cleared caches; outputs are checked before they are timed. Shapes that are in the file are not timed again.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from gpu import append, lines
from torch import nn

from ltcompile.engine.events import cold_us
from ltcompile.engine.gpu import Gpu, cudnn_autotuned
from ltcompile.engine.tune import Cache, default_cache, tune
from ltcompile.lower.lower import lower, to_layout

SHAPES = ((32, 64, 64), (16, 128, 128), (8, 256, 256), (4, 512, 512), (2, 512, 512))  # side, channels in, channels out
BATCHES = (64, 1, 1024)
TINY = ((4, 8, 8), (2, 8, 13))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="two small layers: a rehearsal, no result")
    arguments = parser.parse_args()
    path, gpu = arguments.out / "conv.jsonl", Gpu("fp16")
    done = {row["shape"] for row in lines(path) if "error" not in row}
    for batch, (side, channels, filters) in itertools.product((2,) if arguments.tiny else BATCHES, TINY if arguments.tiny else SHAPES):
        name = f"{batch} x {side}x{side}, {channels} to {filters}"
        if name in done:
            continue
        row = {"shape": name, "triton_us": None, "cudnn_us": None}
        try:
            append(path, row | _times(gpu, batch, side, channels, filters))
        except Exception as error:  # one shape's failure does not stop the others
            append(path, row | {"error": f"{type(error).__name__}: {error}"[:300]})


def _times(gpu: Gpu, batch: int, side: int, channels: int, filters: int) -> dict[str, object]:
    torch.manual_seed(0)
    layer, images = nn.Sequential(nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU()).eval(), torch.randn(batch, channels, side, side)
    program, machine = to_layout(lower(layer, images).program, images, gpu.precision).program, ", ".join(gpu.machine().values())
    with cudnn_autotuned():
        ((best, *_),) = tune(program, gpu.device, machine, Cache(default_cache()), cold_us, lambda _: None).values()
    times = {f"{name}_us": round(us, 2) for name, us in best.times_us.items()}
    return times | {"fastest": best.by, "config": str(best.config)}


if __name__ == "__main__":
    main()
