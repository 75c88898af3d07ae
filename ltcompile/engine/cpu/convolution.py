"""Dense layers: C++ that calls the templates of include/convolution.h and include/depthwise.h with the layer's sizes, and packed weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ltcompile.engine.cpu.code import Array, Buffer, Choice, Code, Convolution
from ltcompile.engine.cpu.tiles import INSTRUCTION_SETS, Geometry, Tiling, best

HEADERS = ("vector.h", "activations.h", "convolution.h")
WEIGHT_LANES = 16
KEEP_ZERO = frozenset(("none", "relu", "relu6", "silu", "hardswish", "gelu"))


def emit(op: Convolution, inputs: Sequence[Buffer], output: Buffer, choice: Choice | None = None) -> Code:
    """The code of a dense layer; the residual is the second of `inputs` where it has one. `choice` is a `Tiling` of this machine's vectors."""
    flat = _flattened(op, inputs, output)
    if flat is not None:
        inputs, output = flat
    filters, channels, *_ = op.weight.shape
    if op.groups > 1 and channels == 1 and filters == op.groups:
        return _depthwise(op, inputs, output)
    template, one = "Convolution", op
    if op.groups > 1:
        one, template = replace(op, weight=op.weight[: filters // op.groups]), "Grouped"
    sizes = _sizes(one, inputs, output) | {"LIMIT": output.lanes if op.groups == 1 else filters // op.groups}
    layer, text = _layer(sizes, _tilings(geometry(one, inputs[0]), choice), op.activation)
    run = f"{template}<{layer}{f', {op.groups}' if op.groups > 1 else ''}>"
    residual = "$in1" if op.residual else "nullptr"
    call = f"{run}::run($in0, $weight, $bias, {residual}, $out, $begin, $end);"
    if op.groups > 1 and output.lanes > filters:
        call += _zero_lanes(output, filters)
    return Code(call, {"weight": pack(op.weight, op.groups), "bias": _packed_bias(op)}, HEADERS, items=f"{run}::ITEMS", functions=(text,))


def _depthwise(op: Convolution, inputs: Sequence[Buffer], output: Buffer) -> Code:
    """One filter a channel: vectors are of channels, so that the weights are (C / 16, R, S, 16)."""
    shape = geometry(op, inputs[0])
    width = next(
        w for w in (8, 7, 6, 5, 4, 3, 2, 1) if (w <= shape.columns and (shape.columns % w == 0 or w == 4)) and w % (1 + op.pool) == 0
    )
    tiling = Tiling(1, 1 + op.pool, width)
    layer, text = _layer(
        _sizes(op, inputs, output) | {"LIMIT": output.lanes}, [tiling, Tiling(1, 1 + op.pool, 4 - 2 * (width < 4)), tiling], op.activation
    )
    filters, _, *kernel = op.weight.shape
    blocks = -(-filters // WEIGHT_LANES)
    weight = np.zeros((blocks * WEIGHT_LANES, *kernel), np.float32)
    weight[:filters] = op.weight[:, 0]
    packed = np.ascontiguousarray(weight.reshape(blocks, WEIGHT_LANES, *kernel).transpose(0, 2, 3, 1))
    residual = "$in1" if op.residual else "nullptr"
    bias = _packed_bias(replace(op, groups=1))
    run = f"Depthwise<{layer}>"
    call = f"{run}::run($in0, $weight, $bias, {residual}, $out, $begin, $end);"
    return Code(call, {"weight": packed, "bias": bias}, (*HEADERS, "depthwise.h"), items=f"{run}::ITEMS", functions=(text,))


def geometry(op: Convolution, x: Buffer) -> Geometry:
    """What the tiles of a convolution depend on; of one group where it has several."""
    filters, channels, *kernel = op.weight.shape
    rows, columns = op.out_size(x)
    return Geometry(
        channels, filters, (kernel[0], kernel[1]), op.stride, op.padding, op.dilation, (x.height, x.width), rows, columns, op.pool
    )


def pack(weight: Array, groups: int = 1) -> Array:
    """(K, C, R, S) -> (groups, K / groups / 16, R, S, C, 16), filters padded with zeros."""
    filters, channels, rows, columns = weight.shape
    each = filters // groups
    blocks = -(-each // WEIGHT_LANES)
    padded = np.zeros((groups, blocks * WEIGHT_LANES, channels, rows, columns), np.float32)
    padded[:, :each] = weight.reshape(groups, each, channels, rows, columns)
    return np.ascontiguousarray(padded.reshape(groups, blocks, WEIGHT_LANES, channels, rows, columns).transpose(0, 1, 4, 5, 3, 2))


def _packed_bias(op: Convolution) -> Array:
    each = len(op.bias) // op.groups
    padded = np.zeros((op.groups, -(-each // WEIGHT_LANES) * WEIGHT_LANES), np.float32)
    padded[:, :each] = op.bias.reshape(op.groups, each)
    return padded


def _flattened(op: Convolution, inputs: Sequence[Buffer], output: Buffer) -> tuple[list[Buffer], Buffer] | None:
    """A 1x1 convolution of images without borders sees them as one row: their tiles have fewer remainders."""
    plain = op.weight.shape[2:] == (1, 1) and op.stride == (1, 1) and op.padding == (0, 0) and not op.pool
    if not plain or any(b.border for b in (*inputs, output)):
        return None
    *rows, result = (replace(b, height=1, width=b.height * b.width) for b in (*inputs, output))
    return rows, result


def _sizes(op: Convolution, inputs: Sequence[Buffer], output: Buffer) -> dict[str, int]:
    x, (filters, channels, *kernel) = inputs[0], op.weight.shape
    added = inputs[1] if op.residual else replace(x, stride=0)
    rows, columns = op.out_size(x)
    pairs = {"S": op.stride, "D": op.dilation, "P": op.padding}
    steps = {f"{name}{axis}": pair[at] for name, pair in pairs.items() for at, axis in enumerate("HW")}
    return {
        **{"C": channels, "K": filters, "R": kernel[0], "S": kernel[1], "H": x.height, "W": x.width, "OH": rows, "OW": columns},
        **steps,
        **{"RESIDUAL": int(op.residual), "POOL": int(op.pool)},
        **{"XR": x.row, "XP": x.stride, "YR": output.row, "YP": output.stride, "RR": added.row, "RP": added.stride},
    }


def _tilings(shape: Geometry, choice: Choice | None) -> list[Tiling]:
    """The tiling for each instruction set: the choice for that of its lanes, and the model's for the others."""
    chosen = dict(choice or {})
    lanes = chosen.pop("lanes", None)
    return [Tiling(**chosen) if isa.lanes == lanes else best(shape, isa) for isa in INSTRUCTION_SETS]


def _layer(sizes: dict[str, int], tilings: Sequence[Tiling], activation: str) -> tuple[str, str]:
    """The name and the definition of the struct of a layer's constants; equal layers have equal names."""
    picks = {
        name.upper(): f"LT_PICK({', '.join(str(int(getattr(t, name))) for t in tilings)})"
        for name in ("vectors", "height", "width", "split", "fixed")
    }
    numbers = ", ".join(f"{name} = {value}" for name, value in {**sizes, **picks, "KEEPS_ZERO": int(activation in KEEP_ZERO)}.items())
    body = f"  enum : int {{ {numbers} }};\n  template <class V> static LT_INLINE V act(const V &v) {{ return act_{activation}(v); }}\n"
    name = f"Layer{hashlib.sha256(body.encode()).hexdigest()[:12]}"
    return name, f"struct {name} {{\n{body}}};"


def _zero_lanes(output: Buffer, filters: int) -> str:
    at = f"$out + p * {output.row} + q * {output.stride} + {filters}"
    bytes_ = (output.lanes - filters) * 4
    return (
        f"\nif ($begin == 0) for (int p = 0; p < {output.height}; ++p) for (int q = 0; q < {output.width}; ++q) memset({at}, 0, {bytes_});"
    )
