"""What an odd number of channels costs our convolution on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ltcompile.engine.events import cold_us
from ltcompile.engine.executable import TRITON
from ltcompile.engine.gpu import Gpu
from ltcompile.engine.tune import Cache, default_cache, tune
from ltcompile.kernels import padded
from ltcompile.lower.lower import lower, to_layout

ODD = ((32, 61), (16, 125), (8, 253))  # side in pixels, channels: VGG-16's, three short of an edge
BATCH = 64


def cost_of_odd(on_progress: Callable[[str], None]) -> dict[int, float]:
    """Odd channels -> the time of a 3x3 convolution of as many to as many, over that of the next multiple of 8; each at its best, fp16."""
    return {
        channels: _conv_us(side, channels, on_progress) / _conv_us(side, padded(channels, torch.float16), on_progress)
        for side, channels in ODD
    }


def _conv_us(side: int, channels: int, on_progress: Callable[[str], None]) -> float:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()).eval()
    images, gpu = torch.randn(BATCH, channels, side, side), Gpu("fp16")
    program = to_layout(lower(layer, images).program, images, gpu.precision).program
    machine = ", ".join(gpu.machine().values())
    ((choice, *_),) = tune(program, torch.device("cuda"), machine, Cache(default_cache()), cold_us, on_progress).values()
    return float(choice.times_us[TRITON])
