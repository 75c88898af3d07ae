"""Claims about a result of competitors: the number that was found for each, and whether it holds; nothing is assumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from ltcompile.benchmark.competitors import ENGINE, Check, CompetitorsResult
from ltcompile.kernels import padded
from ltcompile.lower.lower import lower, to_layout

Number = float | None
ODD = ((32, 61), (16, 125), (8, 253))  # side in pixels, channels: VGG-16's, three short of an edge
BATCH = 64


def at_least(claim: str, found: Number, bound: float) -> Check:
    return Check(claim, found, None if found is None else found >= bound)


def at_most(claim: str, found: Number, bound: float) -> Check:
    return Check(claim, found, None if found is None else found <= bound)


def over_peer(result: CompetitorsResult, subject: str, batch: int, precision: str) -> Number:
    """How many times as fast the engine is as its fastest peer."""
    engine = result.row(subject, batch, ENGINE, precision)
    peer = result.fastest_peer(engine) if engine else None
    return peer.ms_p50 / engine.ms_p50 if engine and peer else None


def engine_us(result: CompetitorsResult, subject: str, batch: int, precision: str) -> Number:
    engine = result.row(subject, batch, ENGINE, precision)
    return 1000 * engine.ms_p50 if engine else None


def over_competitor(result: CompetitorsResult, subject: str, batch: int, competitor: str, precision: str) -> Number:
    """How many times as fast the engine is as that competitor."""
    engine, other = (result.row(subject, batch, name, precision) for name in (ENGINE, competitor))
    return other.ms_p50 / engine.ms_p50 if engine and other else None


def over_dense(result: CompetitorsResult, small: str, dense: str, batch: int, precision: str) -> Number:
    """How many times as fast the engine runs the small network as the dense one."""
    fast, slow = (result.row(subject, batch, ENGINE, precision) for subject in (small, dense))
    return slow.ms_p50 / fast.ms_p50 if fast and slow else None


def of_macs(result: CompetitorsResult, small: str, dense: str, batch: int, precision: str) -> Number:
    """The measured speedup over the dense network, as a share of what the MACs promise."""
    speedup = over_dense(result, small, dense, batch, precision)
    if speedup is None:
        return None
    return speedup * result.subjects[small]["macs"] / result.subjects[dense]["macs"]


def of_roofline(result: CompetitorsResult, subject: str, batch: int, precision: str) -> Number:
    """The least time for all layers, as a share of the engine's for the whole network."""
    us = engine_us(result, subject, batch, precision)
    floors_us = [layer.floor_us for layer in result.layers if (layer.subject, layer.batch, layer.precision) == (subject, batch, precision)]
    return sum(floors_us) / us if us and floors_us else None


def never_behind(claim: str, result: CompetitorsResult, bound: float) -> Check:
    """That in all cases the engine's time over that of the fastest peer of its precision is at most `bound`; found is the worst.

    It fails where one row's whole interval lies above the bound, and is undecided where only the row's median does.
    """
    pairs = [(row, result.fastest_peer(row)) for row in result.rows if row.competitor == ENGINE]
    ratios = {row: row.ms_p50 / peer.ms_p50 for row, peer in pairs if peer}
    if not ratios:
        return Check(claim, None, None)
    if any(row.behind is not None and row.behind[0] > bound for row in ratios):
        return Check(claim, max(ratios.values()), False)
    return Check(claim, max(ratios.values()), True if max(ratios.values()) <= bound else None)


def against_cudnn(result: CompetitorsResult, subjects: Iterable[str]) -> Number:
    """The geometric mean of cuDNN's time over our kernel's, among the dense convolutions where both were timed."""
    wanted = set(subjects)
    timed = [layer.times_us for layer in result.layers if layer.subject in wanted and layer.what == "kernel.conv2d"]
    ratios = [math.log(us["cudnn"] / us["triton"]) for us in timed if {"cudnn", "triton"} <= set(us)]
    return math.exp(sum(ratios) / len(ratios)) if ratios else None


def cost_of_odd(on_progress: Callable[[str], None]) -> dict[int, float]:
    """On a GPU: odd channels -> the time of a 3x3 convolution of as many to as many, over that of the next multiple of 8; each at its best, fp16."""
    return {
        channels: _conv_us(side, channels, on_progress) / _conv_us(side, padded(channels, torch.float16), on_progress)
        for side, channels in ODD
    }


def _conv_us(side: int, channels: int, on_progress: Callable[[str], None]) -> float:
    from ltcompile.engine.events import cold_us
    from ltcompile.engine.executable import TRITON
    from ltcompile.engine.gpu import Gpu
    from ltcompile.engine.tune import Cache, default_cache, tune

    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()).eval()
    images, gpu = torch.randn(BATCH, channels, side, side), Gpu("fp16")
    program = to_layout(lower(layer, images).program, images, gpu.precision).program
    machine = ", ".join(gpu.machine().values())
    ((choice, *_),) = tune(program, torch.device("cuda"), machine, Cache(default_cache()), cold_us, on_progress).values()
    return float(choice.times_us[TRITON])
