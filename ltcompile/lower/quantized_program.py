"""From an int8 ONNX file, with its QuantizeLinear and DequantizeLinear pairs, to a program on integers (`integer`) for one image.

A float value between such a pair is a `Pending` one: it is not computed before it is known whether integers or numbers are wanted of it. A
product, sum or mean of integers becomes one operation with the rounding after it; a function of the elements of one tensor of integers becomes
a table of 256 values; what moves elements moves integers. Everything else computes on float32 numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcompile.errors import Unavailable
from ltcompile.lower import integer
from ltcompile.lower.fake_quantize import DEQUANTIZE, QUANTIZE
from ltcompile.lower.program import Node, Program, Value

_ELEMENTWISE = {  # ONNX's name -> aten's, and names of attributes with their defaults
    **{name.capitalize(): (f"aten.{name}.default", {}) for name in ("relu", "sigmoid", "tanh", "exp", "sqrt", "erf", "abs", "neg", "log")},
    "HardSwish": ("aten.hardswish.default", {}),
    "LeakyRelu": ("aten.leaky_relu.default", {"alpha": 0.01}),
    "Elu": ("aten.elu.default", {"alpha": 1.0}),
    "Gelu": ("aten.gelu.default", {}),
}
_ARITHMETIC = {"Add": "aten.add.Tensor", "Sub": "aten.sub.Tensor", "Mul": "aten.mul.Tensor", "Div": "aten.div.Tensor"}
_SIXTH = float(np.float32(1 / 6))


@dataclass(frozen=True)
class Held:
    """A computed value: integers with scale and zero, or float32 numbers without."""

    name: str
    scale: float = 0.0
    zero: int = 0


@dataclass(frozen=True)
class Constant:
    """Float32 values, and the integers that they were, with a scale for each slice along the first axis of `integers`."""

    values: np.ndarray[Any, Any]
    integers: np.ndarray[Any, Any] | None = None
    scale: np.ndarray[Any, Any] | None = None


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


class _Reader:
    """The nodes of a program while a graph's nodes are visited in order."""

    def __init__(self, model: Any, shape: Sequence[int]) -> None:
        from onnx import numpy_helper

        self.graph, self.nodes, self.constants = model.graph, list[Node](), dict[str, Tensor]()
        self.known: dict[str, Known] = {t.name: Constant(numpy_helper.to_array(t)) for t in model.graph.initializer}
        self.known[""] = Constant(np.zeros(0, np.float32))
        self.input, self.shape = "images", tuple(shape)
        self.meta: dict[str, Any] = {self.input: torch.empty(self.shape, device="meta")}

    def program(self) -> Program:
        inputs = [value.name for value in self.graph.input if value.name not in self.known]
        if len(inputs) != 1 or len(self.graph.output) != 1:
            raise Unavailable("it has several inputs or outputs")
        self.known[inputs[0]] = Held(self.input)
        for node in self.graph.node:
            try:
                self._visit(node)
            except (Unavailable, RuntimeError, KeyError, ValueError, TypeError, IndexError) as error:
                raise Unavailable(f"{node.name or node.output[0]} ({node.op_type}): {error}") from error
        output = self.real(self.graph.output[0].name)
        return Program(self.input, tuple(self.nodes), output, self.constants, self.shape)

    # --- values

    def emit(self, target: str, *args: Any, **kwargs: Any) -> str:
        """The name of a new node's output."""
        node = Node(f"v{len(self.nodes)}", target, args, kwargs, ())
        with torch.no_grad():
            found = self.meta[node.name] = node.run(self.meta)
        self.nodes.append(replace(node, shape=tuple(found.shape) if isinstance(found, Tensor) else ()))
        return node.name

    def constant(self, value: Any) -> Value:
        """A new constant."""
        tensor = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        name = f"c{len(self.constants)}"
        self.constants[name], self.meta[name] = tensor.contiguous(), tensor.to("meta")
        return Value(name)

    def real(self, name: str) -> str:
        """The name of a value as float32 numbers."""
        known = self.known[name]
        if isinstance(known, Constant):
            return self.constant(known.values.astype(np.float32)).name
        if isinstance(known, Held):
            held = known if not known.scale else Held(self.emit("int8.dequantize", Value(known.name), scale=known.scale, zero=known.zero))
        else:
            held = Held(known.real())
            if known.low > -np.inf or known.high < np.inf:
                held = Held(
                    self.emit("aten.clamp.default", Value(held.name), *(v if abs(v) < np.inf else None for v in (known.low, known.high)))
                )
            for move in known.moves:
                held = Held(move(held.name))
            self.known[name] = held
        return held.name

    def shape_of(self, name: str) -> tuple[int, ...]:
        known = self.known[name]
        if isinstance(known, Constant):
            return tuple(map(int, known.values.shape))
        if isinstance(known, Held):
            return tuple(self.meta[known.name].shape)
        with self._trial():
            return tuple(self.meta[self.real(name)].shape)

    @contextlib.contextmanager
    def _trial(self) -> Iterator[None]:
        """What is added inside is dropped again."""
        before = self.nodes, self.constants, self.known
        self.nodes, self.constants, self.known = list(self.nodes), dict(self.constants), dict(self.known)
        yield
        self.nodes, self.constants, self.known = before

    def ints(self, name: str) -> list[int]:
        """A constant's integers. Raises Unavailable where it is computed."""
        known = self.known[name]
        if not isinstance(known, Constant):
            raise Unavailable("it has an argument that is not constant")
        return [int(v) for v in known.values.reshape(-1)]

    # --- nodes

    def _visit(self, node: Any) -> None:
        from onnx import helper

        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == QUANTIZE:
            self.known[node.output[0]] = self._quantized(node.input[0], *self._scale(node))
        elif node.op_type == DEQUANTIZE:
            self.known[node.output[0]] = self._dequantized(node, settings)
        elif node.op_type == "Shape":
            self.known[node.output[0]] = Constant(
                np.array(self.shape_of(node.input[0])[settings.get("start", 0) : settings.get("end")], np.int64)
            )
        elif all(isinstance(self.known[name], Constant) for name in node.input):
            self._compute(node)
        elif node.op_type in _ELEMENTWISE or node.op_type in ("Clip", "HardSigmoid"):
            self.known[node.output[0]] = self._elementwise(node, settings)
        else:
            rule = getattr(self, f"_{node.op_type.lower()}", None)
            if node.op_type in _ARITHMETIC:
                self.known[node.output[0]] = self._arithmetic(node)
            elif node.op_type in _MOVES:
                self._move(node, settings)
            elif rule is None:
                raise Unavailable("the compiler does not have it")
            else:
                self.known[node.output[0]] = rule(node, settings)

    def _compute(self, node: Any) -> None:
        from onnx.reference import ReferenceEvaluator

        found: Any = ReferenceEvaluator(node).run(None, {name: self.known[name].values for name in node.input if name})  # type: ignore[union-attr]
        self.known |= {name: Constant(np.asarray(value)) for name, value in zip(node.output, found, strict=True)}

    def _scale(self, node: Any) -> tuple[float, int]:
        scale, zero = (self.known[name].values for name in node.input[1:])  # type: ignore[union-attr]
        if scale.size != 1 or zero.dtype != np.uint8:
            raise Unavailable("its activations are not unsigned integers with one scale")
        return float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])

    def _dequantized(self, node: Any, settings: dict[str, Any]) -> Known:
        known = self.known[node.input[0]]
        if isinstance(known, Held):
            return Held(known.name, *self._scale(node))
        assert isinstance(known, Constant)
        scale, zero = (self.known[name].values for name in node.input[1:])  # type: ignore[union-attr]
        axis = settings.get("axis", 1) if scale.size > 1 else 0
        across = [-1 if at == axis else 1 for at in range(known.values.ndim)] if scale.size > 1 else []
        values = ((known.values.astype(np.int64) - zero.astype(np.int64).reshape(across)) * scale.reshape(across)).astype(np.float32)
        if axis or zero.any() or not known.values.ndim:
            return Constant(values)
        return Constant(values, known.values, np.broadcast_to(scale.reshape(-1), (len(values),)))

    def _quantized(self, name: str, scale: float, zero: int) -> Held:
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
            return self._quantized_again(known, scale, zero)
        else:
            return Held(self.emit("int8.quantize", Value(self.real(name)), scale=scale, zero=zero), scale, zero)
        for move in known.moves:
            made = move(made)
        return Held(made, scale, zero)

    def _quantized_again(self, held: Held, scale: float, zero: int) -> Held:
        if (held.scale, held.zero) == (scale, zero):
            return held
        table = integer.quantize(_numbers(held), scale=scale, zero=zero)
        return Held(self.emit("int8.lookup", Value(held.name), self.constant(table), zero=zero), scale, zero)

    def _elementwise(self, node: Any, settings: dict[str, Any]) -> Known:
        known, kind = self.known[node.input[0]], node.op_type
        bounds = (0.0, np.inf)
        if kind == "Clip":
            ends = [self.known[name].values for name in node.input[1:]]  # type: ignore[union-attr]
            bounds = tuple(
                float(end) if end.size else default for end, default in zip([*ends, *[np.zeros(0)] * 2], (-np.inf, np.inf), strict=False)
            )  # type: ignore[assignment]
        if kind in ("Relu", "Clip") and isinstance(known, Pending) and known.table is None:
            return replace(known, low=min(max(known.low, bounds[0]), bounds[1]), high=max(min(known.high, bounds[1]), bounds[0]))

        def applied(value: str) -> str:
            if kind == "Clip":
                return self.emit("aten.clamp.default", Value(value), *(v if abs(v) < np.inf else None for v in bounds))
            if kind == "HardSigmoid":
                slope = Value(self.emit("aten.mul.Scalar", Value(value), settings.get("alpha", 0.2)))
                return self.emit("aten.clamp.default", Value(self.emit("aten.add.Scalar", slope, settings.get("beta", 0.5))), 0.0, 1.0)
            target, defaults = _ELEMENTWISE[kind]
            return self.emit(target, Value(value), *(settings.get(name, default) for name, default in defaults.items()))

        return self._function([node.input[0]], lambda values: applied(values[0]))

    def _function(self, names: Sequence[str], applied: Callable[[list[str]], str]) -> Known:
        """An elementwise function: a table where all its operands are functions of the same integers."""
        held = [self.known[name] for name in names]
        sources = {k.source if isinstance(k, Pending) else k for k in held}
        source = next(iter(sources))
        tables = [
            k.table if isinstance(k, Pending) and not k.moves else _numbers(k) if isinstance(k, Held) and k.scale else None for k in held
        ]
        if len(sources) > 1 or not isinstance(source, Held) or not source.scale or any(table is None for table in tables):
            return Held(applied([self.real(name) for name in names]))
        count = len(self.nodes)
        with self._trial():
            name = applied([self.constant(table).name for table in tables])
            values: dict[str, Any] = dict(self.constants)
            for made in self.nodes[count:]:
                values[made.name] = made.run(values)
        table = values[name]
        return Pending(
            lambda *_: "", lambda: self.emit("int8.lookup", Value(source.name), self.constant(table), zero=0), source=source, table=table
        )

    def _arithmetic(self, node: Any) -> Known:
        a, b = (self.known[name] for name in node.input)
        target = _ARITHMETIC[node.op_type]
        if all(isinstance(k, Pending | Held) for k in (a, b)):
            whole = self._function(node.input, lambda values: self.emit(target, *map(Value, values))) if _same_source(a, b) else None
            if whole is not None:
                return whole
        real = lambda: self.emit(target, *(Value(self.real(name)) for name in node.input))  # noqa: E731
        if not (isinstance(a, Held) and isinstance(b, Held) and a.scale and b.scale) or node.op_type not in ("Add", "Mul"):
            return Held(real())

        def quantized(scale: float, output: list[int]) -> str:
            values, zeros = (Value(a.name), Value(b.name)), [a.zero, b.zero]
            if node.op_type == "Mul":
                return self.emit(
                    "int8.mul",
                    *values,
                    zeros=zeros,
                    factor=_float(np.float32(a.scale) * np.float32(b.scale) / np.float32(scale)),
                    output=output,
                )
            return self.emit("int8.add", *values, zeros=zeros, factors=[_ratio(a.scale, scale), _ratio(b.scale, scale)], output=output)

        return Pending(quantized, real)

    def _conv(self, node: Any, settings: dict[str, Any]) -> Known:
        weight, (x, bias) = self._weight(node), (self.known[node.input[0]], self._bias(node))
        places = weight.values.ndim - 2
        pads, strides, dilations = (settings.get(n) or [d] * places for n, d in (("pads", 0), ("strides", 1), ("dilations", 1)))
        pads = [*pads, *pads] if len(pads) == places else pads
        if settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or list(pads[:places]) != list(pads[places:]) or places > 2:
            raise Unavailable("its padding differs from side to side")
        sizes = {"stride": list(strides), "padding": list(pads[:places]), "dilation": list(dilations), "groups": settings.get("group", 1)}

        def real() -> str:
            values = (Value(self.real(node.input[0])), self.constant(weight.values), None if bias is None else self.constant(bias.values))
            return self.emit(f"aten.conv{places}d.default", *values, *sizes.values())

        if not isinstance(x, Held) or not x.scale or weight.integers is None or places != 2 or (bias and bias.integers is None):
            return Pending(lambda scale, output: self._rounded(real(), scale, output), real)
        return Pending(
            lambda scale, output: self._product("int8.conv2d", x, weight, bias, scale, output, None, **sizes, added=[], pool=False), real
        )

    def _gemm(self, node: Any, settings: dict[str, Any]) -> Known:
        weight, (x, bias) = self._weight(node), (self.known[node.input[0]], self._bias(node))
        if settings.get("transA") or not settings.get("transB") or settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0:
            raise Unavailable("it is not a linear layer")

        def real() -> str:
            values = (Value(self.real(node.input[0])), self.constant(weight.values), None if bias is None else self.constant(bias.values))
            return self.emit("aten.linear.default", *values)

        if not isinstance(x, Held) or not x.scale or weight.integers is None or (bias and bias.integers is None):
            return Pending(lambda scale, output: self._rounded(real(), scale, output), real)
        return Pending(lambda scale, output: self._product("int8.linear", x, weight, bias, scale, output), real)

    def _weight(self, node: Any) -> Constant:
        weight = self.known[node.input[1]]
        if not isinstance(weight, Constant):
            raise Unavailable("its weights are not constants")
        return weight

    def _bias(self, node: Any) -> Constant | None:
        bias = self.known[node.input[2]] if len(node.input) > 2 and node.input[2] else None
        if bias is not None and not isinstance(bias, Constant):
            raise Unavailable("its bias is not a constant")
        return bias

    def _product(
        self, target: str, x: Held, weight: Constant, bias: Constant | None, scale: float, output: list[int], *rest: Any, **settings: Any
    ) -> str:
        assert weight.integers is not None and weight.scale is not None
        factor = np.float32(x.scale) * weight.scale.astype(np.float32) / np.float32(scale)
        added = np.zeros(len(weight.values), np.int32) if bias is None or bias.integers is None else bias.integers.astype(np.int32)
        values = (self.constant(v) for v in (weight.integers, added, np.ascontiguousarray(factor, np.float32)))
        return self.emit(target, Value(x.name), *values, *rest, zero=x.zero, output=output, **settings)

    def _rounded(self, real: str, scale: float, output: list[int]) -> str:
        zero, low, high = output
        made = self.emit("int8.quantize", Value(real), scale=scale, zero=zero)
        if (low, high) == (0, 255):
            return made
        return self.emit("int8.lookup", Value(made), self.constant(torch.arange(256).clamp(low, high).to(torch.uint8)), zero=zero)

    def _convtranspose(self, node: Any, settings: dict[str, Any]) -> Known:
        weight, bias, pads = self._weight(node), self._bias(node), settings.get("pads", [0] * 4)
        if weight.values.ndim != 4 or list(pads[:2]) != list(pads[2:]):
            raise Unavailable("its padding differs from side to side")
        values = (Value(self.real(node.input[0])), self.constant(weight.values), None if bias is None else self.constant(bias.values))
        lists = [list(settings.get(n, d)) for n, d in (("strides", [1, 1]), ("pads", [0, 0]), ("output_padding", [0, 0]))]
        sizes = (lists[0], lists[1][:2], lists[2], settings.get("group", 1), list(settings.get("dilations", [1, 1])))
        return Held(self.emit("aten.conv_transpose2d.input", *values, *sizes))

    def _maxpool(self, node: Any, settings: dict[str, Any]) -> Known:
        kernel, pads = list(settings["kernel_shape"]), list(settings.get("pads", [0] * 4))
        if len(kernel) != 2 or pads[:2] != pads[2:] or settings.get("ceil_mode") or set(settings.get("dilations", [1])) != {1}:
            raise Unavailable("it is not a plain pool of images")
        sizes, held = (kernel, list(settings.get("strides", [1, 1])), pads[:2]), self.known[node.input[0]]
        if isinstance(held, Held) and held.scale:
            return replace(held, name=self.emit("int8.max_pool2d", Value(held.name), *sizes))
        return Held(self.emit("aten.max_pool2d.default", Value(self.real(node.input[0])), *sizes))

    def _averagepool(self, node: Any, settings: dict[str, Any]) -> Known:
        kernel, pads = list(settings["kernel_shape"]), list(settings.get("pads", [0] * 4))
        if len(kernel) != 2 or pads[:2] != pads[2:] or settings.get("ceil_mode"):
            raise Unavailable("it is not a plain pool of images")
        sizes = (kernel, list(settings.get("strides", [1, 1])), pads[:2], False, bool(settings.get("count_include_pad", 0)))
        return Held(self.emit("aten.avg_pool2d.default", Value(self.real(node.input[0])), *sizes))

    def _globalaveragepool(self, node: Any, settings: dict[str, Any]) -> Known:
        return self._means(node.input[0], [2, 3], True)

    def _reducemean(self, node: Any, settings: dict[str, Any]) -> Known:
        dims = list(settings["axes"]) if "axes" in settings else self.ints(node.input[1])
        return self._means(node.input[0], dims, bool(settings.get("keepdims", 1)))

    def _means(self, name: str, dims: list[int], keeps: bool) -> Known:
        held, shape = self.known[name], self.shape_of(name)
        real = lambda: self.emit("aten.mean.dim", Value(self.real(name)), dims, keeps)  # noqa: E731
        if not isinstance(held, Held) or not held.scale or len(shape) != 4 or sorted(d % 4 for d in dims) != [2, 3]:
            return Held(real())

        def quantized(scale: float, output: list[int]) -> str:
            factor = _float(np.float32(held.scale) / np.float32(scale) / np.float32(shape[2] * shape[3]))
            made = self.emit("int8.mean", Value(held.name), zero=held.zero, factor=factor, output=output)
            return made if keeps else self.emit("aten.reshape.default", Value(made), list(shape[:2]))

        return Pending(quantized, real)

    def _concat(self, node: Any, settings: dict[str, Any]) -> Known:
        held = [self.known[name] for name in node.input]
        real = lambda: self.emit("aten.cat.default", [Value(self.real(name)) for name in node.input], settings["axis"])  # noqa: E731
        if not all(isinstance(k, Held) and k.scale for k in held):
            return Held(real())

        def quantized(scale: float, output: list[int]) -> str:
            parts = [Value(self._quantized_again(k, scale, output[0]).name) for k in held]  # type: ignore[arg-type]
            return self.emit("aten.cat.default", parts, settings["axis"])

        return Pending(quantized, real)

    def _softmax(self, node: Any, settings: dict[str, Any]) -> Known:
        return Held(self.emit("aten.softmax.int", Value(self.real(node.input[0])), settings.get("axis", -1)))

    def _layernormalization(self, node: Any, settings: dict[str, Any]) -> Known:
        x, *weights = (self.real(name) for name in node.input)
        size = list(self.shape_of(node.input[1]))
        return Held(self.emit("aten.layer_norm.default", Value(x), size, *map(Value, weights), settings.get("epsilon", 1e-5)))

    def _matmul(self, node: Any, settings: dict[str, Any]) -> Known:
        return Held(self.emit("aten.matmul.default", *(Value(self.real(name)) for name in node.input)))

    def _move(self, node: Any, settings: dict[str, Any]) -> None:
        """An operation that moves elements, of integers where these are known."""
        name = node.input[0]
        known, shape = self.known[name], self.shape_of(name)
        move = _MOVES[node.op_type](self, node, settings, shape)
        if isinstance(known, Pending):
            self.known[node.output[0]] = replace(known, moves=(*known.moves, move))
        elif isinstance(known, Held):
            self.known[node.output[0]] = replace(known, name=move(known.name))
        else:
            raise Unavailable("it moves a constant")


def _numbers(held: Held) -> Tensor:
    """What the 256 integers stand for."""
    return integer.dequantize(torch.arange(256, dtype=torch.uint8), scale=held.scale, zero=held.zero)


def _same_source(a: Known, b: Known) -> bool:
    sources = [k.source if isinstance(k, Pending) and not k.moves else k if isinstance(k, Held) and k.scale else None for k in (a, b)]
    return sources[0] is not None and sources[0] == sources[1]


def _ratio(scale: float, other: float) -> float:
    return _float(np.float32(scale) / np.float32(other))


def _float(value: Any) -> float:
    return float(np.float32(value))


Move = Callable[[_Reader, Any, dict[str, Any], tuple[int, ...]], Callable[[str], str]]


def _reshape(reader: _Reader, node: Any, settings: dict[str, Any], shape: tuple[int, ...]) -> Callable[[str], str]:
    """Everything that only changes the shape."""
    kind, count = node.op_type, int(np.prod(shape))
    axes = list(settings.get("axes", [])) or (reader.ints(node.input[1]) if len(node.input) > 1 and node.input[1] else [])
    if kind == "Reshape":
        sizes = [shape[at] if size == 0 and not settings.get("allowzero") else size for at, size in enumerate(axes)]
        sizes = [count // abs(int(np.prod(sizes))) if size == -1 else size for size in sizes]
    elif kind == "Flatten":
        axis = settings.get("axis", 1)
        sizes = [int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))]
    elif kind == "Squeeze":
        gone = [axis % len(shape) for axis in axes] or [at for at, size in enumerate(shape) if size == 1]
        sizes = [size for at, size in enumerate(shape) if at not in gone]
    elif kind == "Unsqueeze":
        there, rest = [axis % (len(shape) + len(axes)) for axis in axes], iter(shape)
        sizes = [1 if at in there else next(rest) for at in range(len(shape) + len(axes))]
    else:  # Identity, Dropout
        sizes = list(shape)
    return lambda name: reader.emit("aten.reshape.default", Value(name), sizes)


def _transpose(reader: _Reader, node: Any, settings: dict[str, Any], shape: tuple[int, ...]) -> Callable[[str], str]:
    order = list(settings.get("perm", range(len(shape))[::-1]))
    return lambda name: reader.emit("aten.permute.default", Value(name), order)


def _slice(reader: _Reader, node: Any, settings: dict[str, Any], shape: tuple[int, ...]) -> Callable[[str], str]:
    starts, ends, *rest = (reader.ints(name) for name in node.input[1:])
    axes, steps = rest[0] if rest else list(range(len(starts))), rest[1] if len(rest) > 1 else [1] * len(starts)

    def move(name: str) -> str:
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            name = reader.emit("aten.slice.Tensor", Value(name), axis, start, min(end, 2**31), step)
        return name

    return move


def _resize(reader: _Reader, node: Any, settings: dict[str, Any], shape: tuple[int, ...]) -> Callable[[str], str]:
    axes = list(settings.get("axes", range(len(shape))))
    scales = reader.known[node.input[2]].values if not (len(node.input) > 3 and node.input[3]) else None  # type: ignore[union-attr]
    sizes = reader.ints(node.input[3]) if scales is None else [int(np.floor(shape[d] * s)) for d, s in zip(axes, scales, strict=True)]
    resized = [sizes[axes.index(d)] if d in axes else size for d, size in enumerate(shape)]
    target = resized[2:]
    whole = len(shape) == 4 and all(size % old == 0 for size, old in zip(target, shape[2:], strict=True))
    if settings.get("mode", b"nearest") != b"nearest" or not whole:
        raise Unavailable("it interpolates")
    return lambda name: reader.emit("aten.upsample_nearest2d.vec", Value(name), list(target), None)


_MOVES: dict[str, Move] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"), _reshape),
    "Transpose": _transpose,
    "Slice": _slice,
    "Resize": _resize,
}


def integer_program(model: Any, shape: Sequence[int]) -> Program:
    """The program of an int8 ONNX model for one image of `shape` (1, ...), with sums and pools fused into the convolutions before them.

    Raises:
        Unavailable: it has an operation that programs on integers do not have; the message names it.
    """
    return _fused(_Reader(model, shape).program())


def _fused(program: Program) -> Program:
    for node in program.nodes:
        if node.target != "int8.conv2d" or node.name not in program.by_name:
            continue
        conv = program.by_name[node.name]
        after = program.only_user(conv.name)
        if after is not None and after.target == "int8.add" and conv.shape == after.shape:
            first = after.args[0] == Value(conv.name)
            other = after.args[1] if first else after.args[0]
            zeros, factors = (pair if first else pair[::-1] for pair in (after.kwargs["zeros"], after.kwargs["factors"]))
            if other != Value(conv.name) and other.name in program.by_name and program.by_name[other.name].shape == conv.shape:
                settings = {**conv.kwargs, "added": [*zeros, *factors, *after.kwargs["output"]]}
                fused = Node(after.name, conv.target, (*conv.args[:4], other), settings, conv.shape)
                program, conv = program.fused((conv, after), fused), fused
                after = program.only_user(conv.name)
        plain = after is not None and after.target == "int8.max_pool2d" and after.args[1:] == ([2, 2], [2, 2], [0, 0])
        if after is not None and plain and not any(side % 2 for side in conv.shape[2:]) and conv.kwargs["groups"] == 1:
            fused = Node(after.name, conv.target, conv.args, {**conv.kwargs, "pool": True}, after.shape)
            program = program.fused((conv, after), fused)
    used, nodes = {program.output}, list[Node]()
    for node in reversed(program.nodes):
        if node.name in used:
            used.update(node.reads)
            nodes.insert(0, node)
    return replace(program, nodes=tuple(nodes), constants={name: v for name, v in program.constants.items() if name in used})
