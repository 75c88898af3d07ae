"""What is known of the values of an int8 ONNX file while its program on integers is built."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcompile.errors import Unavailable
from ltcompile.lower import integer
from ltcompile.lower.program import Node, Value


@dataclass(frozen=True)
class Held:
    """A computed value: integers with scale and zero, or float32 numbers without."""

    name: str
    scale: float = 0.0
    zero: int = 0


@dataclass(frozen=True)
class Constant:
    """Float32 values, and the integers that they were, with one scale, or one for each slice of `integers` along `axis`."""

    values: np.ndarray[Any, Any]
    integers: np.ndarray[Any, Any] | None = None
    scale: np.ndarray[Any, Any] | None = None
    axis: int = 0

    def scales(self, axis: int) -> np.ndarray[Any, Any] | None:
        """A scale for each slice of the integers along `axis`; None where there are none."""
        if self.integers is None or self.scale is None or (self.scale.size > 1 and self.axis != axis):
            return None
        return np.broadcast_to(self.scale.reshape(-1), self.integers.shape[axis])

    @property
    def transposed(self) -> Constant:
        """A matrix the other way round."""
        return Constant(self.values.T, None if self.integers is None else self.integers.T, self.scale, 1 - self.axis)


@dataclass(frozen=True)
class Pending:
    """A float value that is not computed yet.

    `quantized(scale, output)` adds the operation that gives integers, `real()` the one that gives numbers, which `low` and `high` bound.
    `table` holds the values for the 256 integers of `source`. `moves` follow.
    """

    quantized: Callable[[float, list[int]], str]
    real: Callable[[], str]
    low: float = -np.inf
    high: float = np.inf
    source: Held | None = None
    table: Tensor | None = None
    moves: tuple[Callable[[str], str], ...] = field(default=())


Known = Held | Constant | Pending


class Builder:
    """The nodes and constants of a program for one image of `shape`, while an ONNX graph's nodes are visited in order.

    `known` holds the graph's values by their names, at first its `initializers`.
    """

    def __init__(self, shape: Sequence[int], initializers: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self.nodes, self.constants = list[Node](), dict[str, Tensor]()
        self.known: dict[str, Known] = {name: Constant(values) for name, values in initializers.items()}
        self.known[""] = Constant(np.zeros(0, np.float32))
        self.input, self.shape = "images", tuple(shape)
        self.meta: dict[str, Any] = {self.input: torch.empty(self.shape, device="meta")}

    def emit(self, target: str, *args: Any, **kwargs: Any) -> str:
        """The name of a new node's output."""
        node = Node(f"v{len(self.nodes)}", target, args, kwargs, ())
        with torch.no_grad():
            found = self.meta[node.name] = node.run(self.meta)
        self.nodes.append(replace(node, shape=tuple(found.shape) if isinstance(found, Tensor) else ()))
        return node.name

    def clamped(self, name: str, low: float, high: float) -> str:
        """The name of a node's output within bounds, which may be infinite."""
        return self.emit("aten.clamp.default", Value(name), *(bound if abs(bound) < np.inf else None for bound in (low, high)))

    def constant(self, value: Any) -> Value:
        """A new constant."""
        tensor = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        name = f"c{len(self.constants)}"
        self.constants[name], self.meta[name] = tensor.contiguous(), tensor.to("meta")
        return Value(name)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """A constant's values. Raises Unavailable where it is computed."""
        known = self.known[name]
        if not isinstance(known, Constant):
            raise Unavailable("it has an argument that is not constant")
        return known.values

    def ints(self, name: str) -> list[int]:
        """A constant's integers. Raises Unavailable where it is computed."""
        return [int(v) for v in self.array(name).reshape(-1)]

    def real(self, name: str) -> str:
        """The name of a value as float32 numbers."""
        known = self.known[name]
        if isinstance(known, Constant):
            return self.constant(known.values.astype(np.float32)).name
        if isinstance(known, Held):
            held = known if not known.scale else Held(self.emit("int8.dequantize", Value(known.name), scale=known.scale, zero=known.zero))
        else:
            made = known.real()
            if known.low > -np.inf or known.high < np.inf:
                made = self.clamped(made, known.low, known.high)
            for move in known.moves:
                made = move(made)
            held = self.known[name] = Held(made)
        return held.name

    def quantized(self, name: str, scale: float, zero: int) -> Held:
        """A value as integers with this scale and zero."""
        known = self.known[name]
        if isinstance(known, Pending) and known.table is not None and known.source is not None:
            table = integer.quantize(known.table, scale=scale, zero=zero)
            same = torch.equal(table, torch.arange(256, dtype=torch.uint8))
            made = known.source.name if same else self.emit("int8.lookup", Value(known.source.name), self.constant(table), zero=zero)
        elif isinstance(known, Pending):
            low, high = (
                int(np.clip(np.rint(np.clip(v / scale, -integer.MOST, integer.MOST)) + zero, 0, 255)) for v in (known.low, known.high)
            )
            made = known.quantized(scale, [zero, low, high])
        elif isinstance(known, Held) and known.scale:
            return self.quantized_again(known, scale, zero)
        else:
            return Held(self.emit("int8.quantize", Value(self.real(name)), scale=scale, zero=zero), scale, zero)
        for move in known.moves:
            made = move(made)
        return Held(made, scale, zero)

    def quantized_again(self, held: Held, scale: float, zero: int) -> Held:
        """Integers with another scale and zero."""
        if (held.scale, held.zero) == (scale, zero):
            return held
        table = integer.quantize(numbers(held), scale=scale, zero=zero)
        return Held(self.emit("int8.lookup", Value(held.name), self.constant(table), zero=zero), scale, zero)

    def shape_of(self, name: str) -> tuple[int, ...]:
        known = self.known[name]
        if isinstance(known, Constant):
            return tuple(map(int, known.values.shape))
        if isinstance(known, Held):
            return tuple(self.meta[known.name].shape)
        with self.trial():
            return tuple(self.meta[self.real(name)].shape)

    @contextlib.contextmanager
    def trial(self) -> Iterator[None]:
        """What is added inside is dropped again."""
        before = self.nodes, self.constants, self.known
        self.nodes, self.constants, self.known = list(self.nodes), dict(self.constants), dict(self.known)
        yield
        self.nodes, self.constants, self.known = before


def numbers(held: Held) -> Tensor:
    """What the 256 integers stand for."""
    return integer.dequantize(torch.arange(256, dtype=torch.uint8), scale=held.scale, zero=held.zero)
