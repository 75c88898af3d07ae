"""Operations on bytes: `ltcompile.lower.integer` in C++, bit by bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ltcompile.engine.cpu import convolution
from ltcompile.engine.cpu.code import Array, Code, Convolution, Integers, literal
from ltcompile.engine.cpu.dense import emit_layer, emit_transposed, features
from ltcompile.engine.cpu.loops import shared
from ltcompile.engine.cpu.plan import IMAGES, Plan
from ltcompile.engine.cpu.pooling import Reduction, average_pool, max_pool, upsample
from ltcompile.engine.cpu.quads import check_factors, quads_of
from ltcompile.errors import Unavailable
from ltcompile.lower.program import Node

_HEADERS = ("activations.h", "sweep.h", "int8.h")


def _numbers(plan: Plan, value: Any) -> Any:
    """A constant in its own type."""
    plan.constant(value)
    return plan.program.constants[value.name].detach().numpy()


def _bytes(plan: Plan, value: Any) -> None:
    if not plan.placed(value).bytes:
        raise Unavailable("its input does not consist of bytes")


def _point(value: Any, low: int = 0, high: int = 255) -> int:
    """A whole number of a program, which may be from a file."""
    if (type(value) is not int and not (isinstance(value, float) and value.is_integer())) or not low <= value <= high:
        raise Unavailable(f"{value!r} is not between {low} and {high}")
    return int(value)


def _conv2d(plan: Plan, node: Node) -> None:
    x, weight, bias, factor, residual = node.args
    settings = {name: tuple(node.kwargs[name]) for name in ("stride", "padding", "dilation")}
    added = tuple(node.kwargs["added"]) if residual is not None else ()
    op = _layer(plan, node, weight, bias, factor, added, **settings, groups=node.kwargs["groups"], pool=bool(node.kwargs["pool"]))
    for value in (x, residual) if residual is not None else (x,):
        _bytes(plan, value)
    images = [plan.image(x, convolution.border_of(op, *plan.placed(x).shape[2:]))]
    if residual is not None:
        images.append(plan.image(residual))
    emit_layer(plan, node.name, op, images, plan.result(node, 1, zero=_point(added[4] if added else node.kwargs["output"][0])))


def _conv_transpose2d(plan: Plan, node: Node) -> None:
    _bytes(plan, node.args[0])
    _, weight, bias, factor = node.args
    op = _layer(plan, node, weight, bias, factor, (), stride=tuple(node.kwargs["stride"]), padding=tuple(node.kwargs["padding"]))
    emit_transposed(plan, node, replace(op, weight=np.ascontiguousarray(op.weight.transpose(1, 0, 2, 3))))


def _linear(plan: Plan, node: Node) -> None:
    x, weight, bias, factor = node.args
    w, last = _numbers(plan, weight), len(node.shape) - 1
    image, shape = features(plan, x, last, w.shape[1])
    if image.buffer.zero is None:
        raise Unavailable("its input does not consist of bytes")
    op = _layer(plan, node, weight, bias, factor, (), shape=(len(w), *shape))
    emit_layer(plan, node.name, op, [image], plan.result(node, last, zero=_point(node.kwargs["output"][0])))


def _layer(
    plan: Plan, node: Node, weight: Any, bias: Any, factor: Any, added: tuple[float, ...], shape: tuple[int, ...] = (), **settings: Any
) -> Convolution:
    w = _numbers(plan, weight)
    if w.dtype != np.int8 or not all(isinstance(v, int | float) for v in added):
        raise Unavailable("its weights are not int8")
    output = tuple(_point(v) for v in node.kwargs["output"])
    added = (*added[:2], *added[2:4], *(float(_point(v)) for v in added[4:]))
    integers = Integers(_point(node.kwargs["zero"]), _numbers(plan, factor).astype(np.float32), output, added)
    whole = w.astype(np.float32).reshape(shape or w.shape)
    return Convolution(whole, _numbers(plan, bias), residual=bool(added), integers=integers, **settings)


def _quantize(plan: Plan, node: Node) -> None:
    x, zero = plan.placed(node.args[0]), _point(node.kwargs["zero"])
    scale = float(node.kwargs["scale"])
    if not np.float32(scale) > 0 or not np.isfinite(np.float32(scale)):
        raise Unavailable(f"its scale is {scale}")
    plan.result(node, x.channel, zero=zero)
    out = plan.values[node.name]
    if x.storage != IMAGES or len(x.shape) != 4 or x.shape != plan.program.input_shape:
        return plan.pointwise(out, [x], f"quantized<L>(x0, {literal(scale)}, {zero})", node.name, x.channel)
    _, channels, height, width = x.shape
    b = plan.storages[out.storage]
    lines = []
    for quad in range(quads_of(channels)):
        parts = []
        for at, c in enumerate(range(4 * quad, min(4 * quad + 4, channels))):
            of = f"quantized<L>(load<L>(in0 + {c * height * width} + p * {width} + q), {literal(scale)}, {zero})"
            parts.append(f"between({of}, 0, 255) << {8 * at}")
        lines.append(f"scatter<L>(out + p * {b.row} + q * {b.stride} + {4 * quad}, {b.stride}, {' | '.join(parts)});")
    body = "\n      ".join(["constexpr int L = decltype(width)::value;", *lines])
    text, items = shared(
        f"for (int p = $begin; p < $end; p++)\n    sweep<{width}>([&](auto width, int q) {{\n      {body}\n    }});", height, b.floats
    )
    return plan.step(node.name, lambda: Code(text, headers=_HEADERS, items=items), out.address, in0=x.address)


def _dequantize(plan: Plan, node: Node) -> None:
    _bytes(plan, node.args[0])
    _pointwise(plan, node, f"real<L>(x0 - {_point(node.kwargs['zero'])}) * {literal(node.kwargs['scale'])}", None)


def _lookup(plan: Plan, node: Node) -> None:
    _bytes(plan, node.args[0])
    table = _numbers(plan, node.args[1])
    if table.shape != (256,):
        raise Unavailable(f"its table has the shape {table.shape}")
    is_bytes = table.dtype == np.uint8
    text = "looked_up<L>(x0, table)" if is_bytes else "looked_up_real<L>(x0, table)"
    zero = _point(node.kwargs["zero"]) if is_bytes else None
    _pointwise(plan, node, text, zero, {"table": table.astype(np.float32)})


def _add(plan: Plan, node: Node) -> None:
    zeros, factors = [_point(v) for v in node.kwargs["zeros"]], node.kwargs["factors"]
    check_factors(*factors)
    a, b = (f"exact(real<L>(x{n} - {zeros[n]}) * {literal(factors[n])})" for n in (0, 1))
    _rounded(plan, node, f"{a} + {b}")


def _mul(plan: Plan, node: Node) -> None:
    (a, b), factor = (_point(v) for v in node.kwargs["zeros"]), node.kwargs["factor"]
    check_factors(factor)
    _rounded(plan, node, f"exact(real<L>((x0 - {a}) * (x1 - {b})) * {literal(factor)})")


def _rounded(plan: Plan, node: Node, expression: str) -> None:
    for value in node.args[:2]:
        _bytes(plan, value)
    zero, low, high = (_point(v) for v in node.kwargs["output"])
    _pointwise(plan, node, f"between(rounded<L>({expression}) + {zero}, {low}, {high})", zero)


def _pointwise(plan: Plan, node: Node, expression: str, zero: int | None, arrays: dict[str, Array] | None = None) -> None:
    operands = [plan.placed(value) for value in node.args if not plan.is_constant(value)]
    like = next(x for x in operands if x.shape == tuple(node.shape))
    plan.result(node, like.channel, zero=zero)
    plan.pointwise(plan.values[node.name], operands, expression, node.name, like.channel, False, arrays)


def _mean(plan: Plan, node: Node) -> None:
    _bytes(plan, node.args[0])
    x, (zero, low, high) = plan.image(node.args[0], padded=True), (_point(v) for v in node.kwargs["output"])
    b, y = x.buffer, plan.result(node, 1, zero=zero)
    check_factors(node.kwargs["factor"] * b.height * b.width / 256)
    total = f"sum - {b.height * b.width * _point(node.kwargs['zero'])}"
    text = f"""
sweep<{b.lanes}>([&](auto width, int c) {{
  constexpr int L = decltype(width)::value;
  Ints<L> sum = {{}};
  for (int p = 0; p < {b.height}; p++)
    for (int q = 0; q < {b.width}; q++) sum += widen<L>(in0 + p * {b.row} + q * {b.stride} + c);
  narrow<L>(out + c, between(rounded<L>(exact(real<L>({total}) * {literal(node.kwargs["factor"])})) + {zero}, {low}, {high}));
}});
"""
    plan.step(node.name, lambda: Code(text, headers=_HEADERS), y.address, in0=x.address)


def _avg_pool2d(plan: Plan, node: Node) -> None:
    _bytes(plan, node.args[0])
    zero, low, high = (_point(v) for v in node.kwargs["output"])
    check_factors(node.kwargs["factor"])
    inside = f"sum - (bottom - top) * (right - left) * {_point(node.kwargs['zero'])}"
    mean = f"exact(real<L>({inside}) * ({literal(node.kwargs['factor'])} / (float)({{places}})))"
    finish = f"between(rounded<L>({mean}) + {zero}, {low}, {high})"
    parts = Reduction("Ints<L> sum = {};", "sum += v;", finish, load="widen", store="narrow")
    average_pool(plan, node, bool(node.kwargs["counts_padding"]), None, parts, zero)


def _upsample_bilinear2d(plan: Plan, node: Node) -> None:
    _bytes(plan, node.args[0])
    if not isinstance(node.kwargs["align_corners"], bool):
        raise Unavailable("it does not say whether corners are aligned")
    upsample(plan, node)


RULES = {
    "int8.conv2d": _conv2d,
    "int8.conv_transpose2d": _conv_transpose2d,
    "int8.linear": _linear,
    "int8.quantize": _quantize,
    "int8.dequantize": _dequantize,
    "int8.lookup": _lookup,
    "int8.add": _add,
    "int8.mul": _mul,
    "int8.mean": _mean,
    "int8.max_pool2d": max_pool,
    "int8.avg_pool2d": _avg_pool2d,
    "int8.upsample_bilinear2d": _upsample_bilinear2d,
}
