"""Residual branches of a network, found by following one run: which modules a network could do without, next to a shortcut.

An addition has two sides. What only one of them needs is its part; the side with more weights in its part is the branch, and the other the
shortcut, which stays: never both inputs of an addition go. A branch can be removed where nothing outside reads what it computes, where
modules of its own hold its weights, and where the cut network is the masked one (`disagreements`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ltcompile.core.plan import Branch, PruningPlan
from ltcompile.graph.inputs import Arguments, Example
from ltcompile.graph.probe import Probes, on_probe, run
from ltcompile.graph.proof import branch_id, disagreements
from ltcompile.graph.rules import describe, tensors_in
from ltcompile.graph.trace import plain, trace
from ltcompile.graph.wrappers import unwrap

ADDITIONS = ("aten.add", "aten.add_")


def branches(model: nn.Module, example: Example) -> tuple[tuple[Branch, ...], dict[str, str]]:
    """The residual branches of `model` that a plan may remove, in the order in which they run; and name -> why not, of the others.

    Of branches inside one another, the smaller are found. Raises InvalidModel and InvalidSetting as `trace` does.
    """
    model = unwrap(model)
    found = on_probe(model, example, _found)
    differing = disagreements(model, example, PruningPlan(trace(model, example), removed_branches=found)) if found else {}
    sound = tuple(branch for branch in found if branch_id(branch) not in differing)
    return sound, {branch.name: differing[branch_id(branch)] for branch in found if branch not in sound}


@dataclass
class _Call:
    """The runs of one module: the operations in them, as bits; the shapes of what the first gets and gives; whether it gives (tensor, None)."""

    operations: int = 0
    start: int = 0
    reads: tuple[int, ...] = ()
    gives: tuple[int, ...] = ()
    kind: str = "other"


@dataclass
class _Operation:
    name: str
    reads: int  # the operations whose results it reads, as bits
    weights: list[str]
    sides: list[tuple[int, tuple[int, ...]]]  # of an addition: the operation that made each side (-1: an input), and its shape
    needs: int = 0  # all operations before it that it needs, as bits
    users: int = 0


@dataclass
class _Run(TorchDispatchMode):
    """One run of a network: every operation with what it reads, and every module with its operations."""

    weights: dict[int, str]
    operations: list[_Operation] = field(default_factory=list)
    calls: dict[str, _Call] = field(default_factory=dict)
    began: dict[str, int] = field(default_factory=dict)  # where the run of a module began
    makers: dict[int, int] = field(default_factory=dict)  # tensor -> the last operation that wrote it
    memory: dict[int, list[Tensor]] = field(default_factory=dict)  # keeps the tensors, so that ids stay theirs

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, at = tensors_in([args, kwargs or {}]), len(self.operations)
        name, _ = describe(func)
        sides = [(self.makers.get(id(t), -1), tuple(t.shape)) for t in args[:2] if isinstance(t, Tensor)] if name in ADDITIONS else []
        weights = [self.weights[id(t)] for t in read if id(t) in self.weights]
        made = _Operation(name, _bits(self.makers[id(t)] for t in read if id(t) in self.makers), weights, sides)
        for before in _places(made.reads):
            made.needs |= self.operations[before].needs | 1 << before
            self.operations[before].users |= 1 << at
        self.operations.append(made)
        for tensor in tensors_in(out):
            same = self.memory.setdefault(tensor.untyped_storage()._cdata, [])
            if not any(tensor is other for other in same):
                same.append(tensor)
            self.makers.update({id(other): at for other in (same if func._schema.is_mutable else [tensor])})
        return out

    def enter(self, path: str, args: Any, kwargs: Any) -> None:
        if path not in self.calls:
            shapes = [tuple(t.shape) for t in tensors_in([args, kwargs])]
            self.calls[path] = _Call(start=len(self.operations), reads=shapes[0] if shapes else ())
        self.began[path] = len(self.operations)

    def leave(self, path: str, output: Any) -> None:
        call = self.calls[path]
        call.operations |= (1 << len(self.operations)) - (1 << self.began[path])
        pair = isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor) and output[1] is None
        call.kind = "tensor" if isinstance(output, Tensor) else "pair" if pair else "other"
        call.gives = tuple(tensors_in(output)[0].shape) if tensors_in(output) else ()


def _bits(places: Iterator[int]) -> int:
    found = 0
    for place in places:
        found |= 1 << place
    return found


def _places(bits: int) -> Iterator[int]:
    while bits:
        yield (lowest := bits & -bits).bit_length() - 1
        bits ^= lowest


def _found(probes: Probes, inputs: Arguments) -> tuple[Branch, ...]:
    probe = probes()
    watched = _Run({id(tensor): name for name, tensor in [*probe.named_parameters(), *probe.named_buffers()]})
    for path, module in probe.named_modules():
        if path:
            module.register_forward_pre_hook(lambda _, args, kwargs, path=path: watched.enter(path, args, kwargs), with_kwargs=True)
            module.register_forward_hook(lambda _, args, output, path=path: watched.leave(path, output))
    with torch.no_grad():
        output = run(probe, inputs, watched)
    ends = _bits(watched.makers[id(t)] for t in tensors_in(plain(output)) if id(t) in watched.makers)
    live = ends
    for end in _places(ends):
        live |= watched.operations[end].needs
    parts = sorted(_branch_parts(watched, live, ends), key=lambda part: part[0].bit_count())  # the smaller first
    taken: list[tuple[int, Branch]] = []
    for part, shape in parts:
        if not any(part & other for other, _ in taken) and (branch := _branch(watched, probe, part, live, shape)) is not None:
            taken.append((part, branch))
    return tuple(branch for part, branch in sorted(taken, key=lambda one: one[0] & -one[0]))


def _branch_parts(watched: _Run, live: int, ends: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """For each addition that has one, the operations of its branch, as bits, and the shape that the branch gives."""
    operations = watched.operations
    for at, addition in enumerate(operations):
        if len(addition.sides) != 2 or addition.sides[0][1] != addition.sides[1][1] or not live >> at & 1:
            continue
        needs = [0 if maker < 0 else operations[maker].needs | 1 << maker for maker, _ in addition.sides]
        own = [needs[0] & ~needs[1], needs[1] & ~needs[0]]
        weights = [{w for i in _places(part) for w in operations[i].weights} for part in own]
        side = int(len(weights[1]) > len(weights[0]))
        part = own[side]
        outside = live & ~(part | 1 << at)
        if (
            len(weights[side]) > len(weights[1 - side])
            and not part & ends
            and not any(operations[i].users & outside for i in _places(part))
        ):
            yield part, addition.sides[side][1]


def _branch(watched: _Run, probe: nn.Module, part: int, live: int, shape: tuple[int, ...]) -> Branch | None:
    """The branch of these operations, which gives `shape`, in terms of modules; None where these cannot be replaced."""
    inside = {
        path: call
        for path, call in watched.calls.items()
        if call.operations & live and not call.operations & live & ~part and any(True for _ in probe.get_submodule(path).parameters())
    }
    layers = [path for path in inside if not any(path.startswith(f"{other}.") for other in inside)]
    layers.sort(key=lambda path: inside[path].start)
    weights = [w.rpartition(".")[0] for i in _places(part) for w in watched.operations[i].weights]
    zeroed = next((w for w in reversed(weights) if any(f"{w}.".startswith(f"{path}.") for path in layers)), None)
    if zeroed is None or any(inside[path].kind == "other" for path in layers):
        return None
    stride = 0 if inside[layers[0]].reads == shape else _stride(inside[layers[0]].reads, shape, [probe.get_submodule(p) for p in layers])
    if stride is None:
        return None
    return Branch(tuple(layers), zeroed, stride, tuple(path for path in layers if inside[path].kind == "pair"))


def _stride(reads: tuple[int, ...], gives: tuple[int, ...], layers: list[nn.Module]) -> int | None:
    """The s for which places 0, s, 2s... are what is left of every axis, for inputs of any size; None where there is none."""
    convolutions = [m for layer in layers for m in layer.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    if len(reads) != len(gives) or len(reads) < 3 or not convolutions:
        return None
    for convolution in convolutions:
        sizes = zip(convolution.kernel_size, convolution.dilation, strict=True)
        halves = tuple(dilation * (kernel - 1) for kernel, dilation in sizes)
        if convolution.padding != "same" and tuple(2 * p for p in convolution.padding) != halves:
            return None
    stride = max(1, round(reads[2] / gives[2]))
    return stride if all(-(-a // stride) == b for a, b in zip(reads[2:], gives[2:], strict=True)) else None
