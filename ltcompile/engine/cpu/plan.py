"""From a program for one image to steps on planned memory: what each value's memory looks like, and which code fills it.

Values are views of storages, as in PyTorch, and PyTorch computes the views (on its meta device): permuting, slicing and most reshapes cost
nothing. How wide a storage's border must be, and which storages are slices of a concatenation, is known only behind its readers; so
planning is repeated until both stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcompile.engine.cpu.checks import check
from ltcompile.engine.cpu.code import Array, Buffer, Choice, Code, lanes_of
from ltcompile.engine.cpu.convolution import Layer
from ltcompile.engine.cpu.loops import elementwise
from ltcompile.errors import Unavailable
from ltcompile.lower.program import Node, Program, Value

IMAGES, OUTPUTS = "images", "outputs"  # what the caller owns
MOST_PASSES = 12
_HEADERS = {"float": (), "uint8_t": ("int8.h",), "bf16": ("convolution.h", "sweep.h", "bf16.h")}  # by the type of elements


@dataclass(frozen=True)
class Address:
    """A place in a storage, in elements from its start, whose C++ type is `type`."""

    storage: str
    offset: int
    type: str = "float"


@dataclass(frozen=True)
class Placed:
    """A value: a view of a storage as a tensor on the meta device, float32, bfloat16 or uint8; strides and offset count elements."""

    storage: str
    tensor: Tensor

    @property
    def address(self) -> Address:
        return Address(self.storage, int(self.tensor.storage_offset()), "uint8_t" if self.bytes else "bf16" if self.half else "float")

    @property
    def bytes(self) -> bool:
        return self.tensor.dtype == torch.uint8

    @property
    def half(self) -> bool:
        return self.tensor.dtype == torch.bfloat16

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def strides(self) -> tuple[int, ...]:
        return self.tensor.stride()

    @property
    def channel(self) -> int:
        """The dimension whose elements lie next to each other."""
        usual = 1 if len(self.shape) == 4 else len(self.shape) - 1
        if self.storage == IMAGES:
            return usual
        return next((d for d, (size, step) in enumerate(zip(self.shape, self.strides, strict=True)) if step == 1 < size), usual)


@dataclass(frozen=True)
class Image:
    """A value as images: an address of pixel (0, 0), and the buffer."""

    address: Address
    buffer: Buffer


@dataclass(frozen=True)
class Step:
    """Code, made when all is planned, and the addresses of its parameters; "out" is written. `layer` is what tuning varies."""

    name: str
    code: Callable[[], Code]
    addresses: Mapping[str, Address]
    layer: Layer | None = None


@dataclass
class Slices:
    """What consumers request of storages: the border of each, and the concatenation and first channel of those that are a part of one."""

    borders: dict[str, int] = field(default_factory=dict)
    parts: dict[str, tuple[str, int]] = field(default_factory=dict)
    wholes: dict[str, Buffer] = field(default_factory=dict)


@dataclass
class Plan:
    """Steps and storages while a program's nodes are visited in order."""

    program: Program
    known: Slices
    choices: Mapping[str, Choice] = field(default_factory=dict)
    threads: int = 1
    portable: bool = True
    steps: list[Step] = field(default_factory=list)
    storages: dict[str, Buffer] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    requested: Slices = field(default_factory=Slices)
    output_shape: tuple[int, ...] = ()
    cleared: set[str] = field(default_factory=set)  # storages that are zero before their first step, which leaves some lanes as they are

    def placed(self, value: Any) -> Placed:
        """A node's argument in memory. Raises Unavailable where it is not the value of another node."""
        found = self.values.get(value.name) if isinstance(value, Value) else None
        if isinstance(found, Lazy):
            found = self.values[value.name] = self.copied(found.source, found.shape, f"{value.name}.copy")
        if not isinstance(found, Placed):
            raise Unavailable("one of its arguments is not a tensor that the network computes")
        return found

    def constant(self, value: Any) -> Array:
        """A constant argument. Raises Unavailable where it is computed."""
        if not isinstance(value, Value) or value.name not in self.program.constants:
            raise Unavailable("its weights are not constants")
        return self.program.constants[value.name].detach().float().numpy()

    def is_constant(self, value: Any) -> bool:
        return isinstance(value, Value) and value.name in self.program.constants

    def zero(self, x: Placed) -> int | None:
        """The zero point of bytes."""
        return self.storages[x.storage].zero if x.bytes else None

    def new(self, name: str, shape: Sequence[int], channel: int, zero: int | None = None, half: bool = False) -> tuple[Placed, Image]:
        """Memory for a result, as a tensor of `shape` and as images whose channels are dimension `channel`: bytes where there is a `zero`,
        bf16 where it is `half`.
        """
        order = [d for d in range(len(shape)) if d != channel]
        rows = [shape[d] for d in order[:-1]]
        height, width, channels = math.prod(rows), shape[order[-1]] if order else 1, shape[channel]
        parent, first = self.known.parts.get(name, (name, 0))
        if parent == name:
            buffer = Buffer(height, width, channels, self.known.borders.get(name, 0), lanes_of(channels), lanes_of(channels), zero, half)
            self.storages.setdefault(name, buffer)
        else:
            whole = self.storages.setdefault(parent, replace(self.known.wholes[parent], border=self.known.borders.get(parent, 0)))
            buffer = replace(whole, channels=channels, lanes=channels)
            self.clear(parent)
        strides, offset = _strides(buffer, shape, channel), buffer.origin + first
        dtype = torch.uint8 if zero is not None else torch.bfloat16 if half else torch.float32
        tensor = torch.empty(0, device="meta", dtype=dtype).as_strided(tuple(shape), [strides[d] for d in range(len(shape))], offset)
        return Placed(parent, tensor), Image(Address(parent, offset, buffer.type), buffer)

    def result(
        self, node: Node, channel: int | None = None, shape: Sequence[int] | None = None, zero: int | None = None, half: bool = False
    ) -> Image:
        """Memory for the output of `node`, which becomes its value."""
        shape = shape or node.shape
        usual = 1 if len(shape) == 4 else len(shape) - 1
        self.values[node.name], image = self.new(node.name, shape, usual if channel is None else channel, zero, half)
        return image

    def image(self, value: Any, padding: int = 0, channel: int = 1, padded: bool = False) -> Image:
        """An argument of shape (1, C, H, W), or with its channels elsewhere, as images; a copy where it is none.

        Its border is at least `padding`. With `padded`, whole vectors of it may be read: zeros follow its channels.
        """
        return self.as_image(self.placed(value), padding, channel, value.name, padded)

    def as_image(self, x: Placed, padding: int, channel: int, name: str, padded: bool = False) -> Image:
        shape, order = x.shape, [d for d in range(len(x.shape)) if d != channel]
        height, width, channels = math.prod(shape[d] for d in order[:-1]), shape[order[-1]] if order else 1, shape[channel]
        whole = self.storages.get(x.storage)
        if whole is not None and (whole.height, whole.width) == (height, width):
            first = x.address.offset - whole.origin
            full = first == 0 and channels == whole.channels
            aligned = first % 8 == channels % 8 == 0 and not (padded and lanes_of(channels) > channels)
            fits = all(shape[d] == 1 or x.strides[d] == step for d, step in _strides(whole, shape, channel).items())
            if fits and first >= 0 and first + channels <= whole.lanes and (full or aligned):
                self.requested.borders[x.storage] = max(self.requested.borders.get(x.storage, 0), padding)
                return Image(x.address, whole if full else replace(whole, channels=channels, lanes=channels))
        copied, name = f"{name}.image{channel}" in self.storages, f"{name}.image{channel}"
        copy, image = self.new(name, shape, channel, self.zero(x), x.half)
        self.requested.borders[name] = max(self.requested.borders.get(name, 0), padding)
        if not copied:
            self.copy(copy, x, name, channel)
        return image

    def step(self, name: str, code: Callable[[], Code], out: Address, **inputs: Address) -> None:
        self.steps.append(Step(name, code, {**inputs, "out": out}))

    def copy(self, out: Placed, x: Placed, name: str, channel: int | None = None) -> None:
        """A step that copies x to out, element by element in order of their indices; both have one shape."""
        self.pointwise(out, [x], "x0", name, channel)

    def copied(self, x: Placed, shape: Sequence[int], name: str) -> Placed:
        """x in new memory with another shape: its elements in the order of their indices."""
        target = shape if len(shape) >= len(x.shape) else x.shape  # one is a view of the other where dimensions are only merged or split
        out, _ = self.new(name, shape, len(shape) - 1, self.zero(x), x.half)
        for first, second in ((lambda t: t.view(x.shape), lambda t: t), (lambda t: t, lambda t: t.view(shape))):
            try:
                views = Placed(out.storage, first(out.tensor)), Placed(x.storage, second(x.tensor))
            except RuntimeError:
                continue
            self.copy(*views, name)
            return out
        flat, _ = self.new(f"{name}.flat", (1, math.prod(target)), 1, self.zero(x), x.half)
        self.copy(Placed(flat.storage, flat.tensor.view(x.shape)), x, f"{name}.flat")
        self.copy(out, Placed(flat.storage, flat.tensor.view(shape)), name)
        return out

    def pointwise(
        self,
        out: Placed,
        inputs: Sequence[Placed | Array],
        expression: str,
        name: str,
        channel: int | None = None,
        keeps_zero: bool = True,
        tables: Mapping[str, Array] | None = None,
    ) -> None:
        """A step out = expression(x0, x1, ...), with inputs that broadcast, for values and constants; `tables` are constants by name."""
        channel = out.channel if channel is None else channel
        buffer, shape = self.storages.get(out.storage), list(out.shape)
        views: list[Placed | Array] = [
            Placed(x.storage, x.tensor.expand(shape)) if isinstance(x, Placed) else _expanded(x, shape, channel) for x in inputs
        ]
        padded = self._padded(out, buffer, channel)
        if not padded:
            self.clear(out.storage)
        if padded and (keeps_zero or out.bytes) and all(self._readable(x, channel, padded) and (out.bytes or not x.bytes) for x in views):  # type: ignore[union-attr]
            shape[channel], padded = padded, 0
        strides = [x.strides if isinstance(x, Placed) else tuple(s // 4 for s in x.strides) for x in views]
        text, items = elementwise(
            shape,
            out.strides,
            strides,
            expression,
            innermost=channel if padded else None,
            padded=padded,
            integers=[isinstance(x, Placed) and x.bytes for x in (out, *views)],
        )
        arrays = {f"in{n}": _memory(x) for n, x in enumerate(views) if not isinstance(x, Placed)} | dict(tables or {})
        addresses = {f"in{n}": x.address for n, x in enumerate(views) if isinstance(x, Placed)}
        types = sorted({x.address.type for x in (out, *views) if isinstance(x, Placed)})
        headers = ("activations.h", "sweep.h", *(name for kind in types for name in _HEADERS[kind]))
        self.step(name, lambda: Code(text, arrays, headers, items=items), out.address, **addresses)

    def clear(self, storage: str) -> None:
        """Zero a storage before its first step, whose lanes behind the channels no step fills."""
        b = self.storages.get(storage)
        if b is not None and b.zero is None and b.stride > b.channels:
            self.cleared.add(storage)

    def _padded(self, out: Placed, buffer: Buffer | None, channel: int) -> int:
        """The lanes of a pixel, where a writer of `out` has to fill more than its channels; otherwise 0."""
        size = out.shape[channel]
        whole = buffer is not None and size == buffer.channels and out.strides[channel] == 1 and out.address.offset == buffer.origin
        return buffer.lanes if buffer is not None and whole and buffer.lanes > size else 0

    def _readable(self, x: Placed | Array, channel: int, lanes: int) -> bool:
        """Whether `x` holds zeros behind its channels, up to `lanes`."""
        if isinstance(x, np.ndarray):
            return False
        if x.storage not in self.storages or x.strides[channel] != 1:
            return False
        return self._padded(x, self.storages[x.storage], channel) == lanes


@dataclass(frozen=True)
class Lazy:
    """A reshape that is no view, copied when it is read; linear layers read `source` instead."""

    source: Placed
    shape: tuple[int, ...]


def _strides(buffer: Buffer, shape: Sequence[int], channel: int) -> dict[int, int]:
    """Dimension -> its stride in images whose channels are dimension `channel`; the last of the others are columns."""
    found, step, order = {channel: 1}, buffer.stride, [d for d in range(len(shape)) if d != channel]
    for d in reversed(order):
        found[d], step = step, buffer.row if d == order[-1] else step * shape[d]
    return found


def _expanded(constant: Array, shape: Sequence[int], channel: int) -> Array:
    """A constant broadcast to `shape`, its channels next to each other in memory."""
    value = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    value = np.moveaxis(np.ascontiguousarray(np.moveaxis(value, channel, -1)), -1, channel)
    return np.broadcast_to(value, shape)


def _memory(view: Array) -> Array:
    """What lies under a broadcast constant, in the order of its memory."""
    kept = view[tuple(slice(None) if step else slice(1) for step in view.strides)]
    return np.ascontiguousarray(kept.transpose(np.argsort([-s for s in kept.strides], kind="stable"))).reshape(-1)


Rules = Mapping[str, Callable[[Plan, Node], None]]


def planned(program: Program, rules: Rules, choices: Mapping[str, Choice], threads: int = 1, portable: bool = True) -> Plan:
    """The steps of a program for one image (1, ...); code that is not `portable` is tiled for this machine alone.

    Raises:
        Unavailable: an operation cannot be generated; the message names it and says why.
    """
    check(program)
    known = Slices()
    for _ in range(MOST_PASSES):
        requested = Slices(dict(known.borders), dict(known.parts), dict(known.wholes))
        plan = _visited(Plan(program, known, choices, threads, portable, requested=requested), rules)
        if plan.requested == known:
            return plan
        known = plan.requested
    raise Unavailable("its memory cannot be planned; please report this network")


def _visited(plan: Plan, rules: Rules) -> Plan:
    program = plan.program
    plan.values[program.input] = Placed(IMAGES, torch.empty(program.input_shape, device="meta"))
    for node in program.nodes:
        try:
            if node.target not in rules:
                raise Unavailable(f"the compiler does not have {node.target}")
            rules[node.target](plan, node)
        except Unavailable as reason:
            raise Unavailable(f"{node.layer or node.name} ({node.target}): {reason}") from reason
    answer = plan.placed(Value(program.output))
    plan.output_shape = answer.shape
    plan.copy(Placed(OUTPUTS, torch.empty(answer.shape, device="meta")), answer, "leave")
    return plan
