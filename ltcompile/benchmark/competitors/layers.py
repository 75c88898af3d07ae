"""Layer by layer: time, bytes, flop, and the share of the roofline.

On a GPU the nodes are those of the engine's program, each run alone, with cold caches, by the implementation that the engine chose. On a CPU they are
the fused operations of the lowered program, run by PyTorch one after the other: what a runtime does inside is not measured.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ltcompile import kernels
from ltcompile.benchmark.competitors.clock import DeviceClock
from ltcompile.benchmark.competitors.competitor import Network
from ltcompile.benchmark.competitors.peaks import Peaks
from ltcompile.core.records import Record
from ltcompile.engine import cudnn
from ltcompile.engine.events import cold_us, copies
from ltcompile.engine.executable import TRITON, Choice, kernel_and_arguments, specs
from ltcompile.engine.file import EngineVariant
from ltcompile.engine.tune import read_choice
from ltcompile.lower.passes.precision import rewrite
from ltcompile.lower.program import Node, Program
from ltcompile.numerics import tile

CPU_RUNS = 5
GPU_S = 0.05  # for each layer


@dataclass(frozen=True)
class Layer(Record):
    """One operation of a network for one batch. `times_us` are the times of its candidates, where an engine chose."""

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
    times_us: dict[str, float]

    @property
    def share(self) -> float:
        """Of the roofline; above 1 where it beats the measured peaks."""
        return self.floor_us / self.us


def on_cpu(network: Network, batch: int, peaks: Peaks, clock: DeviceClock) -> list[Layer]:
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
def _median_us(call: Callable[[], Any], clock: DeviceClock) -> tuple[float, Any]:
    taken = []
    for _ in range(1 + CPU_RUNS):
        start = clock()
        made = call()
        taken.append(clock() - start)
    return 1e6 * statistics.median(taken[1:]), made


def on_gpu(network: Network, variant: EngineVariant, peaks: Peaks) -> Iterator[Layer]:
    """Each node of the engine's program by what it chose, on random inputs that no cache holds; one by one, as they are timed."""
    program, batch = variant.program, variant.decision.batch
    assert program is not None
    choices = {name: read_choice(value) for name, value in variant.options["choices"].items()}
    ours, shapes = work(program, batch), specs(program)
    works = ours | work(rewrite(network.lowered(1), peaks.precision))  # channels of padding count for nothing
    for node in program.nodes:
        if node.name in ours:
            us = _cold_us(program, node, choices.get(node.name), shapes)
            yield _layer(network.name, batch, node, us, works[node.name], peaks, choices.get(node.name))


def _cold_us(program: Program, node: Node, choice: Choice | None, shapes: Mapping[str, Tensor]) -> float:
    count = copies(sum(_bytes(shapes[name]) for name in (*node.reads, node.name) if isinstance(shapes[name], Tensor)))
    calls = [call_on(program, node, choice, "cuda", shapes) for _ in range(count)]
    calls[0]()  # a first call compiles, or tries algorithms
    return cold_us({node.name: lambda copy: calls[copy]()}, count, GPU_S)[node.name]


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
        times_us=dict(choice.times_us) if choice else {},
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


def call_on(program: Program, node: Node, choice: Choice | None, device: str, shapes: Mapping[str, Tensor]) -> Callable[[], Any]:
    """One run of `node` on `device`, on random values in memory of its own; `shapes` are `specs(program)`."""
    constants = program.constants
    values = {
        name: constants[name].to(device, copy=True) if name in constants else torch.randn(like.shape, device=device).to(like.dtype)
        for name in (*node.reads, node.name)
        if isinstance(like := shapes[name], Tensor)
    }
    return _call(node, choice, values)


def _call(node: Node, choice: Choice | None, values: Mapping[str, Tensor]) -> Callable[[], Any]:
    if choice is None:
        return functools.partial(node.run, values)
    if choice.by != TRITON:
        args, _ = node.filled(values)
        return functools.partial(cudnn.layer(node, values), args[0], args[3] if len(args) > 3 else None)
    kernel, arguments = kernel_and_arguments(node, values)
    return functools.partial(kernels.launch, kernel.prepare(values[node.name], arguments, choice.config))
