"""ONNX operations that compute, as operations on integers where their inputs are integers, and else on float32 numbers.

A product, sum or mean of integers waits for the rounding after it, and both become one operation. A function of the elements of one tensor of
integers becomes a table of 256 values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ltcompile.errors import Unavailable
from ltcompile.lower._quantized_moves import moved, resized
from ltcompile.lower._quantized_values import Builder, Constant, Held, Known, Pending, numbers
from ltcompile.lower.program import Value

_ELEMENTWISE = {  # ONNX's name -> aten's, and names of attributes with their defaults
    **{name.capitalize(): (f"aten.{name}.default", {}) for name in ("relu", "sigmoid", "tanh", "exp", "sqrt", "erf", "abs", "neg", "log")},
    "HardSwish": ("aten.hardswish.default", {}),
    "LeakyRelu": ("aten.leaky_relu.default", {"alpha": 0.01}),
    "Elu": ("aten.elu.default", {"alpha": 1.0}),
    "Gelu": ("aten.gelu.default", {}),
}
_ARITHMETIC = {"Add": "aten.add.Tensor", "Sub": "aten.sub.Tensor", "Mul": "aten.mul.Tensor", "Div": "aten.div.Tensor"}


def _elementwise(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    known, kind = builder.known[node.input[0]], node.op_type
    low, high = 0.0, np.inf
    if kind == "Clip":
        ends = [*(builder.array(name) for name in node.input[1:]), *[np.zeros(0)] * 2]
        low, high = (float(end) if end.size else default for end, default in zip(ends, (-np.inf, np.inf), strict=False))
    if kind in ("Relu", "Clip") and isinstance(known, Pending) and known.table is None:
        return replace(known, low=min(max(known.low, low), high), high=max(min(known.high, high), low))

    def applied(value: str) -> str:
        if kind == "Clip":
            return builder.clamped(value, low, high)
        if kind == "HardSigmoid":
            slope = Value(builder.emit("aten.mul.Scalar", Value(value), settings.get("alpha", 0.2)))
            return builder.clamped(builder.emit("aten.add.Scalar", slope, settings.get("beta", 0.5)), 0.0, 1.0)
        target, defaults = _ELEMENTWISE[kind]
        return builder.emit(target, Value(value), *(settings.get(name, default) for name, default in defaults.items()))

    return _function(builder, [node.input[0]], lambda values: applied(values[0]))


def _function(builder: Builder, names: Sequence[str], applied: Callable[[list[str]], str]) -> Known:
    """An elementwise function: a table where all its operands are functions of the same integers."""
    held = [builder.known[name] for name in names]
    sources = {k.source if isinstance(k, Pending) else k for k in held}
    source = next(iter(sources))
    tables = [k.table if isinstance(k, Pending) and not k.moves else numbers(k) if isinstance(k, Held) and k.scale else None for k in held]
    if len(sources) > 1 or not isinstance(source, Held) or not source.scale or any(table is None for table in tables):
        return Held(applied([builder.real(name) for name in names]))
    count = len(builder.nodes)
    with builder.trial():
        name = applied([builder.constant(table).name for table in tables])
        values: dict[str, Any] = dict(builder.constants)
        for made in builder.nodes[count:]:
            values[made.name] = made.run(values)
    table = values[name]
    return Pending(
        lambda *_: "", lambda: builder.emit("int8.lookup", Value(source.name), builder.constant(table), zero=0), source=source, table=table
    )


def _arithmetic(builder: Builder, node: Any, _: dict[str, Any]) -> Known:
    a, b = (builder.known[name] for name in node.input)
    target = _ARITHMETIC[node.op_type]
    if _same_source(a, b):
        return _function(builder, node.input, lambda values: builder.emit(target, *map(Value, values)))

    def real() -> str:
        return builder.emit(target, *(Value(builder.real(name)) for name in node.input))

    if not (isinstance(a, Held) and isinstance(b, Held) and a.scale and b.scale) or node.op_type not in ("Add", "Mul"):
        return Held(real())

    def quantized(scale: float, output: list[int]) -> str:
        values, zeros = (Value(a.name), Value(b.name)), [a.zero, b.zero]
        scales = [np.float32(a.scale), np.float32(b.scale)]
        if node.op_type == "Mul":
            factor = float(scales[0] * scales[1] / np.float32(scale))
            return builder.emit("int8.mul", *values, zeros=zeros, factor=factor, output=output)
        return builder.emit("int8.add", *values, zeros=zeros, factors=[float(s / np.float32(scale)) for s in scales], output=output)

    return Pending(quantized, real)


def _same_source(a: Known, b: Known) -> bool:
    sources = [k.source if isinstance(k, Pending) and not k.moves else k if isinstance(k, Held) and k.scale else None for k in (a, b)]
    return sources[0] is not None and sources[0] == sources[1]


def _conv(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    places = _weight(builder, node).values.ndim - 2
    pads, strides, dilations = (settings.get(n) or [d] * places for n, d in (("pads", 0), ("strides", 1), ("dilations", 1)))
    pads = [*pads, *pads] if len(pads) == places else pads
    if settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or list(pads[:places]) != list(pads[places:]) or places > 2:
        raise Unavailable("its padding differs from side to side")
    sizes = {"stride": list(strides), "padding": list(pads[:places]), "dilation": list(dilations), "groups": settings.get("group", 1)}
    real = f"aten.conv{places}d.default", *sizes.values()
    return _layer(builder, node, real, "int8.conv2d" if places == 2 else None, None, **sizes, added=[], pool=False)


def _gemm(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    if settings.get("transA") or not settings.get("transB") or settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0:
        raise Unavailable("it is not a linear layer")
    return _layer(builder, node, ("aten.linear.default",), "int8.linear")


def _matmul(builder: Builder, node: Any, _: dict[str, Any]) -> Known:
    """A linear layer. A product of two computed matrices stays in float32: these are attention's, between softmaxes and norms in float32."""
    weight = builder.known[node.input[1]]
    if isinstance(weight, Constant) and weight.values.ndim == 2:
        return _product(builder, node.input[0], weight.transposed, None, ("aten.linear.default",), "int8.linear")
    return Held(builder.emit("aten.matmul.default", *(Value(builder.real(name)) for name in node.input)))


def _layer(builder: Builder, node: Any, real: tuple[Any, ...], target: str | None, *rest: Any, axis: int = 0, **settings: Any) -> Known:
    return _product(builder, node.input[0], _weight(builder, node), _bias(builder, node), real, target, *rest, axis=axis, **settings)


def _product(
    builder: Builder,
    name: str,
    weight: Constant,
    bias: Constant | None,
    real: tuple[Any, ...],
    target: str | None,
    *rest: Any,
    axis: int = 0,
    **settings: Any,
) -> Known:
    """A layer with weights, whose filters are along `axis`: by `real`, an operation and its settings, on numbers, and by `target` where there
    is one for integers.
    """
    x, scales = builder.known[name], weight.scales(axis)

    def numeric() -> str:
        added = None if bias is None else builder.constant(bias.values)
        return builder.emit(real[0], Value(builder.real(name)), builder.constant(weight.values), added, *real[1:])

    def rounded(scale: float, output: list[int]) -> str:
        zero, low, high = output
        made = builder.emit("int8.quantize", Value(numeric()), scale=scale, zero=zero)
        if (low, high) == (0, 255):
            return made
        return builder.emit("int8.lookup", Value(made), builder.constant(torch.arange(256).clamp(low, high).to(torch.uint8)), zero=zero)

    if not target or not isinstance(x, Held) or not x.scale or scales is None or (bias and bias.integers is None):
        return Pending(rounded, numeric)

    def quantized(scale: float, output: list[int]) -> str:
        factor = np.float32(x.scale) * scales.astype(np.float32) / np.float32(scale)
        added = np.zeros(len(scales), np.int32) if bias is None or bias.integers is None else bias.integers.astype(np.int32)
        values = (builder.constant(v) for v in (weight.integers, added, np.ascontiguousarray(factor, np.float32)))
        return builder.emit(target, Value(x.name), *values, *rest, zero=x.zero, output=output, **settings)

    return Pending(quantized, numeric)


def _weight(builder: Builder, node: Any) -> Constant:
    weight = builder.known[node.input[1]]
    if not isinstance(weight, Constant):
        raise Unavailable("its weights are not constants")
    return weight


def _bias(builder: Builder, node: Any) -> Constant | None:
    bias = builder.known[node.input[2]] if len(node.input) > 2 and node.input[2] else None
    if bias is not None and not isinstance(bias, Constant):
        raise Unavailable("its bias is not a constant")
    return bias


def _conv_transpose(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    pads = settings.get("pads", [0] * 4)
    if _weight(builder, node).values.ndim != 4 or list(pads[:2]) != list(pads[2:]):
        raise Unavailable("its padding differs from side to side")
    sizes = {"stride": list(settings.get("strides", [1, 1])), "padding": list(pads[:2])}
    sizes["output_padding"] = list(settings.get("output_padding", [0, 0]))
    groups, dilation = settings.get("group", 1), list(settings.get("dilations", [1, 1]))
    plain = groups == 1 and dilation == [1, 1]
    real = "aten.conv_transpose2d.input", *sizes.values(), groups, dilation
    return _layer(builder, node, real, "int8.conv_transpose2d" if plain else None, axis=1, **sizes)


def _max_pool(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    sizes, held = _window(settings), builder.known[node.input[0]]
    if isinstance(held, Held) and held.scale:
        return replace(held, name=builder.emit("int8.max_pool2d", Value(held.name), *sizes))
    return Held(builder.emit("aten.max_pool2d.default", Value(builder.real(node.input[0])), *sizes))


def _average_pool(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    sizes, counts, held = _window(settings), bool(settings.get("count_include_pad", 0)), builder.known[node.input[0]]

    def real() -> str:
        return builder.emit("aten.avg_pool2d.default", Value(builder.real(node.input[0])), *sizes, False, counts)

    if not isinstance(held, Held) or not held.scale:
        return Held(real())

    def quantized(scale: float, output: list[int]) -> str:
        factor = float(np.float32(held.scale) / np.float32(scale))
        return builder.emit(
            "int8.avg_pool2d", Value(held.name), *sizes, counts_padding=counts, zero=held.zero, factor=factor, output=output
        )

    return Pending(quantized, real)


def _window(settings: dict[str, Any]) -> tuple[list[int], list[int], list[int]]:
    """A pool's kernel, strides and padding. Raises Unavailable where it has more settings than these."""
    kernel, pads = list(settings["kernel_shape"]), list(settings.get("pads", [0] * 4))
    if len(kernel) != 2 or pads[:2] != pads[2:] or settings.get("ceil_mode") or set(settings.get("dilations", [1])) != {1}:
        raise Unavailable("it is not a plain pool of images")
    return kernel, list(settings.get("strides", [1, 1])), pads[:2]


def _global_average_pool(builder: Builder, node: Any, _: dict[str, Any]) -> Known:
    return _means(builder, node.input[0], [2, 3], True)


def _reduce_mean(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    dims = list(settings["axes"]) if "axes" in settings else builder.ints(node.input[1])
    return _means(builder, node.input[0], dims, bool(settings.get("keepdims", 1)))


def _means(builder: Builder, name: str, dims: list[int], keeps: bool) -> Known:
    held, shape = builder.known[name], builder.shape_of(name)

    def real() -> str:
        return builder.emit("aten.mean.dim", Value(builder.real(name)), dims, keeps)

    if not isinstance(held, Held) or not held.scale or len(shape) != 4 or sorted(d % 4 for d in dims) != [2, 3]:
        return Held(real())

    def quantized(scale: float, output: list[int]) -> str:
        factor = float(np.float32(held.scale) / np.float32(scale) / np.float32(shape[2] * shape[3]))
        made = builder.emit("int8.mean", Value(held.name), zero=held.zero, factor=factor, output=output)
        return made if keeps else builder.emit("aten.reshape.default", Value(made), list(shape[:2]))

    return Pending(quantized, real)


def _concat(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    known = [builder.known[name] for name in node.input]
    held = [k for k in known if isinstance(k, Held) and k.scale]

    def real() -> str:
        return builder.emit("aten.cat.default", [Value(builder.real(name)) for name in node.input], settings["axis"])

    def quantized(scale: float, output: list[int]) -> str:
        parts = [Value(builder.quantized_again(k, scale, output[0]).name) for k in held]
        return builder.emit("aten.cat.default", parts, settings["axis"])

    return Pending(quantized, real) if len(held) == len(known) else Held(real())


def _softmax(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    return Held(builder.emit("aten.softmax.int", Value(builder.real(node.input[0])), settings.get("axis", -1)))


def _layer_normalization(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    x, *weights = (builder.real(name) for name in node.input)
    size = list(builder.shape_of(node.input[1]))
    return Held(builder.emit("aten.layer_norm.default", Value(x), size, *map(Value, weights), settings.get("epsilon", 1e-5)))


def _resize(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    """Nearest neighbours move; between neighbours, integers become integers of the same scale."""
    name, mode = node.input[0], settings.get("mode", b"nearest")
    if mode == b"nearest":
        return moved(builder, node, settings)
    held, shape = builder.known[name], builder.shape_of(name)
    size, whole = resized(builder, node, settings, shape)
    corners = settings.get("coordinate_transformation_mode", b"half_pixel")
    plain = mode == b"linear" and len(shape) == 4 and whole and not settings.get("antialias") and size[:2] == list(shape[:2])
    if not plain or corners not in (b"half_pixel", b"pytorch_half_pixel", b"align_corners") or (corners == b"half_pixel" and 1 in size[2:]):
        raise Unavailable("it interpolates in another way than PyTorch's bilinear one")
    aligned = corners == b"align_corners"
    if isinstance(held, Held) and held.scale:
        return replace(held, name=builder.emit("int8.upsample_bilinear2d", Value(held.name), size[2:], align_corners=aligned))
    return Held(builder.emit("aten.upsample_bilinear2d.vec", Value(builder.real(name)), size[2:], aligned, None))


OPERATIONS: dict[str, Callable[[Builder, Any, dict[str, Any]], Known]] = {
    **dict.fromkeys((*_ELEMENTWISE, "Clip", "HardSigmoid"), _elementwise),
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
    "Conv": _conv,
    "Gemm": _gemm,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "ReduceMean": _reduce_mean,
    "Concat": _concat,
    "Softmax": _softmax,
    "LayerNormalization": _layer_normalization,
    "MatMul": _matmul,
    "Resize": _resize,
}
