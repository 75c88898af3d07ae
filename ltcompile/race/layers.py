"""Layer by layer: time, bytes, flop, and the share of the roofline.

On a GPU the nodes are those of the engine's program, each run by whoever the engine chose, alone and again and again in a CUDA graph. On
a CPU they are the fused operations of the lowered program, run by PyTorch one after the other: what a runtime does inside is not told.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ltcompile import kernels
from ltcompile.core.records import Record
from ltcompile.engine.checks import tile
from ltcompile.engine.executable import TRITON, Choice, specs
from ltcompile.engine.file import Part
from ltcompile.engine.gpu import time_us
from ltcompile.engine.tune import read_choice
from ltcompile.lower import vendor
from ltcompile.lower.passes.precision import rewrite
from ltcompile.lower.program import Node, Program, filled
from ltcompile.race.clock import Clock
from ltcompile.race.entrant import Network
from ltcompile.race.peaks import Peaks

CPU_RUNS = 5
GPU_S = 0.05  # for each layer


@dataclass(frozen=True)
class Layer(Record):
    """One operation of a network for one batch. `told_us` are the times of who was tried for it, where an engine chose."""

    subject: str
    batch: int
    precision: str
    layer: str
    what: str
    by: str
    us: float
    moved_bytes: int  # what it reads and writes, once
    flop: int
    floor_us: float
    told_us: dict[str, float]

    @property
    def share(self) -> float:
        """Of the roofline; above 1 where the caches held what it read."""
        return self.floor_us / self.us


def on_cpu(network: Network, batch: int, peaks: Peaks, clock: Clock) -> list[Layer]:
    """Each fused operation by PyTorch, on the values of the first images."""
    program, works = network.lowered(batch), work(network.lowered(1))
    values: dict[str, Any] = {program.input: tile(network.images, batch), **program.constants}
    layers = []
    for node in program.nodes:
        us, values[node.name] = _median_us(functools.partial(node.run, values), clock)
        if node.name in works:
            layers.append(_layer(network.name, batch, node, us, works[node.name], peaks))
    return layers


@torch.inference_mode()
def _median_us(call: Callable[[], Any], clock: Clock) -> tuple[float, Any]:
    taken = []
    for _ in range(1 + CPU_RUNS):
        start = clock()
        made = call()
        taken.append(clock() - start)
    return 1e6 * statistics.median(taken[1:]), made


def on_gpu(network: Network, part: Part, peaks: Peaks) -> list[Layer]:
    """Each node of the engine's program by whoever it chose, on random inputs; those of small layers stay in the L2 cache."""
    program, batch = part.program, part.decision.batch
    assert program is not None
    choices = {name: read_choice(value) for name, value in part.how["choices"].items()}
    ours = work(program, batch)
    nodes = [node for node in program.nodes if node.name in ours]
    works = ours | work(rewrite(network.lowered(1), peaks.precision))  # channels of padding count for nothing
    us = time_us(_calls(program, nodes, choices, "cuda"), GPU_S)
    return [_layer(network.name, batch, node, us[node.name], works[node.name], peaks, choices.get(node.name)) for node in nodes]


def _layer(subject: str, batch: int, node: Node, us: float, work: Work, peaks: Peaks, choice: Choice | None = None) -> Layer:
    moved_bytes, flop = work.constant_bytes + batch * work.value_bytes, batch * work.flop
    return Layer(
        subject=subject,
        batch=batch,
        precision=peaks.precision,
        layer=node.layer or node.name,
        what=node.target.removesuffix(".default"),
        by=choice.by if choice else "PyTorch",
        us=us,
        moved_bytes=moved_bytes,
        flop=flop,
        floor_us=peaks.floor_us(moved_bytes, flop),
        told_us=dict(choice.told_us) if choice else {},
    )


@dataclass(frozen=True)
class Work:
    """What an operation does at least: constants that it reads once; values that it reads and writes, and flop, for each image."""

    constant_bytes: int
    value_bytes: int
    flop: int


def work(program: Program, batch: int = 1) -> dict[str, Work]:
    """Node -> its work, for a program of batches of `batch`. Views do none and are left out."""
    values, found = specs(program), {}
    for node in program.nodes:
        made, reads = values[node.name], [(name, values[name]) for name in node.reads]
        if not isinstance(made, Tensor) or any(_lie_together(made, x) for _, x in reads):
            continue
        with FlopCounterMode(display=False) as counter:
            node.run(values)
        constant_bytes = sum(_bytes(x) for name, x in reads if name in program.constants)
        value_bytes = _bytes(made) + sum(_bytes(x) for name, x in reads if name not in program.constants)
        found[node.name] = Work(constant_bytes, value_bytes // batch, counter.get_total_flops() // batch)
    return found


def _lie_together(x: Tensor, other: Any) -> bool:
    """Whether one is a view of the other."""
    return isinstance(other, Tensor) and bool(x.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _calls(program: Program, nodes: Sequence[Node], choices: Mapping[str, Choice], device: str) -> dict[str, Callable[[], Any]]:
    """Node -> one run of it on `device`, on memory of its own."""
    values = {
        name: program.constants[name].to(device) if name in program.constants else torch.randn(like.shape, device=device).to(like.dtype)
        for name, like in specs(program).items()
        if isinstance(like, Tensor)
    }
    return {node.name: _call(node, choices.get(node.name), values) for node in nodes}


def _call(node: Node, choice: Choice | None, values: Mapping[str, Tensor]) -> Callable[[], Any]:
    if choice is None:
        return functools.partial(node.run, values)
    args, kwargs = filled(list(node.args), values), filled(dict(node.kwargs), values)
    if choice.by != TRITON:
        return functools.partial(vendor.cudnn(node, values), args[0], args[3] if len(args) > 3 else None)
    kernel = kernels.load(node.target.removeprefix("kernel."))
    return functools.partial(kernels.launch, kernel.prepare(values[node.name], *args, **kwargs, config=choice.config))
