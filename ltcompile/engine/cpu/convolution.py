"""Dense layers: C++ that calls the templates of include/convolution.h and include/depthwise.h with the layer's sizes, and packed weights."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcompile.engine.cpu import matrix
from ltcompile.engine.cpu.code import Array, Buffer, Choice, Code, Convolution
from ltcompile.engine.cpu.quads import constants, is_depthwise, packed_bias, packed_depthwise, packed_weight, paired
from ltcompile.engine.cpu.tiles import INSTRUCTION_SETS, WEIGHT_LANES, Geometry, InstructionSet, Tiling, best, instruction_set, twins

HEADERS = ("vector.h", "activations.h", "convolution.h")
INTEGER_HEADERS = (*HEADERS, "sweep.h", "int8.h")
MOST_IN_A_ROW = 512  # pixels


@dataclass(frozen=True, eq=False)
class Layer:
    """A dense layer with the memory of its images."""

    op: Convolution
    inputs: tuple[Buffer, ...]
    output: Buffer

    def code(self, choice: Choice | None = None, threads: int = 1, portable: bool = True) -> Code:
        code = emit(self.op, self.inputs, self.output, choice, threads, portable)
        return replace(code, headers=(*code.headers, "sweep.h", "bf16.h")) if any(b.half for b in (*self.inputs, self.output)) else code


def emit(
    op: Convolution, inputs: Sequence[Buffer], output: Buffer, choice: Choice | None = None, threads: int = 1, portable: bool = True
) -> Code:
    """The code of a dense layer; the residual is the second of `inputs` where it has one.

    `choice` is a `Tiling` for the instruction set with `lanes` floats in a vector; without it, and for others, a model chooses. Code that
    is not `portable` has the tiling of this machine for all of them.
    """
    flat = _flattened(op, inputs, output)
    if flat is not None:
        inputs, output = flat
    filters, channels, *_ = op.weight.shape
    if op.integers is not None and is_depthwise(op):
        return _depthwise_integers(op, inputs, output)
    if op.integers is None and op.groups > 1 and channels == 1 and filters == op.groups:
        return _depthwise(op, inputs, output)
    one = replace(op, weight=op.weight[: filters // op.groups]) if op.groups > 1 else op
    shape = geometry(one, inputs[0])
    direct = op.groups > 1 or not shape.winograd or inputs[0].border < border_of(op, inputs[0].height, inputs[0].width)
    tilings = _tilings(shape, choice, threads, direct, portable, op.groups > 1)
    if tilings[0].matrix:
        return _matrix(op, inputs, output, tilings[0])
    if tilings[0].block:
        return _winograd(op, inputs, output, shape, tilings)
    limit = {"LIMIT": output.lanes if op.groups == 1 else filters // op.groups}
    arrays, headers = _packed(op), _headers(op)
    if tilings[0].twins:
        limit["C"], arrays, headers = -(-shape.channels // 2), paired(arrays), (*headers, "twins.h")
    layer, text = _layer(_sizes(one, inputs, output) | limit, tilings, op, _types(inputs, output))
    run = f"Grouped<{layer}, {op.groups}>" if op.groups > 1 else f"Convolution<{layer}>"
    call = f"{run}::run($in0, $weight, $bias, {_residual(op)}, $out, $begin, $end);"
    if op.groups > 1 and output.lanes > filters and op.integers is None:
        call += _zero_lanes(output, filters)
    return Code(call, arrays, headers, items=f"{run}::ITEMS", functions=(text,))


def emit_transposed(op: Convolution, x: Buffer, output: Buffer) -> Code:
    """The code of a transposed convolution of stride `op.stride`; the weight is (K, C, R, S), as that of others.

    Outputs p = m stride + a, for each remainder a, are a convolution of stride 1 with the taps r for which stride divides a + padding - r.
    """
    functions, calls, arrays = list[str](), list[str](), dict[str, Array]()
    kernel, stride = op.weight.shape[2:], op.stride
    for at, (a, b) in enumerate(
        itertools.product(*(range(min(n, size)) for n, size in zip(stride, (output.height, output.width), strict=True)))
    ):
        rows, columns = (_phase(*sizes) for sizes in zip((a, b), kernel, stride, op.padding, strict=True))
        taps = np.ascontiguousarray(op.weight[:, :, rows.taps][:, :, :, columns.taps])
        one = replace(op, weight=taps, stride=(1, 1), padding=(rows.padding, columns.padding))
        size = -(-(output.height - a) // stride[0]), -(-(output.width - b) // stride[1])
        of = {"OH": size[0], "OW": size[1], "YR": stride[0] * output.row, "YP": stride[1] * output.stride, "LIMIT": output.lanes}
        shape = replace(geometry(one, x), rows=size[0], columns=size[1])
        layer, text = _layer(_sizes(one, [x], output) | of, [best(shape, isa, 1, (0, 1)) for isa in INSTRUCTION_SETS], one)
        run, to = f"Convolution<{layer}>", f"$out + {a * output.row + b * output.stride}"
        calls.append(f"if (phase == {at}) {run}::run($in0, $weight{at}, $bias{at}, nullptr, {to}, 0, {run}::ITEMS);")
        functions.append(text)
        arrays |= {f"{name}{at}": array for name, array in _packed(one).items()}
    first, last = ("0", "1") if len(calls) == 1 else ("$begin", "$end")
    body = "\n".join([f"for (int phase = {first}; phase < {last}; phase++) {{", *calls, "}"])
    return Code(body, arrays, _headers(op), items=str(len(calls)), functions=tuple(functions))


def _headers(op: Convolution) -> tuple[str, ...]:
    return HEADERS if op.integers is None else INTEGER_HEADERS


def _packed(op: Convolution) -> dict[str, Array]:
    """The arrays of a layer of tiles."""
    weight = op.weight if op.step == 1 else packed_weight(op)
    return {"weight": pack(weight, op.groups), "bias": packed_bias(op, op.integers) if op.integers else _packed_bias(op)}


@dataclass(frozen=True)
class _Taps:
    """The taps of one remainder along one axis, in the order of the inputs that they read, and the padding in front of these."""

    taps: list[int]
    padding: int


def _phase(remainder: int, kernel: int, stride: int, padding: int) -> _Taps:
    taps = list(range((remainder + padding) % stride, kernel, stride))[::-1]
    return _Taps(taps, len(taps) - 1 - (remainder + padding) // stride)


def transposed_border(op: Convolution, x: Sequence[int], out: Sequence[int]) -> int:
    """The border of zeros that a transposed convolution reads around images of x's rows and columns."""
    need = 0
    for axis in (0, 1):
        for a in range(min(op.stride[axis], out[axis])):
            phase = _phase(a, op.weight.shape[2 + axis], op.stride[axis], op.padding[axis])
            last = -(-(out[axis] - a) // op.stride[axis]) - 1 - phase.padding + len(phase.taps) - 1  # the last row that is read
            need = max(need, phase.padding, last - (x[axis] - 1))
    return need


def _winograd(op: Convolution, inputs: Sequence[Buffer], output: Buffer, shape: Geometry, tilings: Sequence[Tiling]) -> Code:
    """3x3, stride 1, even sizes: 16 products for 2x2 outputs."""
    filters, channels = op.weight.shape[:2]
    block, x, y = tilings[0].block, -(-channels // 16) * 16, -(-filters // 16) * 16
    product = shape.product(block)
    of = {"XP": x, "XR": 0, "YP": y, "YR": 0, "RP": 0, "RR": 0, "LIMIT": y, "BIAS": 0, "POOL": 0, "RESIDUAL": 0}
    ones = {"R": 1, "S": 1, "SH": 1, "SW": 1, "DH": 1, "DW": 1, "PH": 0, "PW": 0}
    sizes = {"C": channels, "K": filters, "H": 1, "W": product.columns, "OH": 1, "OW": product.columns}
    inner, inner_text = _layer({**sizes, **ones, **of}, tilings, replace(op, activation="none"))
    limit = {"LIMIT": output.lanes, "BLOCK": block}
    outer, outer_text = _layer(_sizes(op, inputs, output) | limit, tilings, op, _types(inputs, output))
    run = f"Winograd<{outer}, {inner}>"
    call = f"{run}::run($in0, $weight, $bias, {_residual(op)}, $out, $scratch, $begin, $end);"
    arrays = {"weight": pack_winograd(op.weight), "bias": _packed_bias(op)}
    scratch = 16 * (product.columns * (x + y) + 32)
    return Code(call, arrays, (*HEADERS, "winograd.h"), scratch, (inner_text, outer_text), f"{run}::ITEMS")


def pack_winograd(weight: Array) -> Array:
    """(K, C, 3, 3) -> (16, K / 16, C, 16): G w G', filters padded with zeros."""
    g = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    filters, channels = weight.shape[:2]
    padded = np.zeros((-(-filters // WEIGHT_LANES), WEIGHT_LANES, channels, 9), np.float32)
    padded.reshape(-1, channels, 9)[:filters] = weight.reshape(filters, channels, 9)
    kernel = np.kron(g, g).astype(np.float32)
    return np.stack([np.ascontiguousarray((padded @ row).transpose(0, 2, 1)) for row in kernel])


def _matrix(op: Convolution, inputs: Sequence[Buffer], output: Buffer, tiling: Tiling) -> Code:
    """By the tiles of AMX."""
    of = matrix.sizes(op, inputs[0], tiling)
    layer, text = _layer(_sizes(op, inputs, output) | of | {"LIMIT": output.lanes}, [tiling] * 3, op, _types(inputs, output))
    run = f"Matrix<{layer}>"
    call = f"{run}::run($in0, $weight, $bias, {_residual(op)}, $out, $begin, $end);"
    weight = pack(matrix.padded(packed_weight(op), of["DEPTH"] * of["CHUNKS"]))
    return Code(call, _packed(op) | {"weight": weight}, (*_headers(op), "amx.h"), items=f"{run}::ITEMS", functions=(text,))


def _residual(op: Convolution) -> str:
    return "$in1" if op.residual else "nullptr"


def _depthwise(op: Convolution, inputs: Sequence[Buffer], output: Buffer) -> Code:
    """One filter a channel: vectors are of channels, so that the weights are (C / 16, R, S, 16)."""
    shape = geometry(op, inputs[0])
    width = next(
        w for w in (8, 7, 6, 5, 4, 3, 2, 1) if (w <= shape.columns and (shape.columns % w == 0 or w == 4)) and w % (1 + op.pool) == 0
    )
    tiling = Tiling(1, 1 + op.pool, width)
    tilings = [tiling, Tiling(1, 1 + op.pool, 4 - 2 * (width < 4)), tiling]
    layer, text = _layer(_sizes(op, inputs, output) | {"LIMIT": output.lanes}, tilings, op, _types(inputs, output))
    filters, _, *kernel = op.weight.shape
    blocks = -(-filters // WEIGHT_LANES)
    weight = np.zeros((blocks * WEIGHT_LANES, *kernel), np.float32)
    weight[:filters] = op.weight[:, 0]
    packed = np.ascontiguousarray(weight.reshape(blocks, WEIGHT_LANES, *kernel).transpose(0, 2, 3, 1))
    bias = _packed_bias(replace(op, groups=1))
    run = f"Depthwise<{layer}>"
    call = f"{run}::run($in0, $weight, $bias, {_residual(op)}, $out, $begin, $end);"
    return Code(call, {"weight": packed, "bias": bias}, (*HEADERS, "depthwise.h"), items=f"{run}::ITEMS", functions=(text,))


def _depthwise_integers(op: Convolution, inputs: Sequence[Buffer], output: Buffer) -> Code:
    assert op.integers is not None
    layer, text = _layer(_sizes(op, inputs, output) | {"LIMIT": output.lanes}, [Tiling(1, 1, 1)] * 3, op)
    run = f"Depthwise8<{layer}>"
    call = f"{run}::run($in0, $weight, $bias, {_residual(op)}, $out, $begin, $end);"
    arrays = {"weight": packed_depthwise(op), "bias": packed_bias(op, op.integers)}
    return Code(call, arrays, INTEGER_HEADERS, items=f"{run}::ITEMS", functions=(text,))


def border_of(op: Convolution, rows: int, columns: int) -> int:
    """The border of zeros that its images of this many rows and columns need."""
    shape = geometry(op, Buffer(rows, columns, op.weight.shape[1] * op.groups, 0, 0, 0))
    return max(op.padding) + (op.groups == 1 and shape.winograd and (shape.rows % 2 or shape.columns % 2))


def tiled(op: Convolution, inputs: Sequence[Buffer], output: Buffer) -> Geometry | None:
    """What its tiles depend on, where a choice of tiles counts; None for a layer in groups."""
    flat = _flattened(op, inputs, output)
    return None if op.groups > 1 else geometry(op, (flat[0] if flat else inputs)[0])


def geometry(op: Convolution, x: Buffer) -> Geometry:
    """What the tiles of a convolution depend on; of one group where it has several."""
    filters, channels, *kernel = op.weight.shape
    rows, columns = op.out_size(x)
    sizes = (op.stride, op.padding, op.dilation, (x.height, x.width), rows, columns, op.pool, op.step > 1)
    return Geometry(-(-channels // op.step), filters, (kernel[0], kernel[1]), *sizes)


def pack(weight: NDArray[Any], groups: int = 1) -> NDArray[Any]:
    """(K, C, R, S) -> (groups, K / groups / 16, R, S, C, 16), filters padded with zeros."""
    filters, channels, rows, columns = weight.shape
    each = filters // groups
    blocks = -(-each // WEIGHT_LANES)
    padded = np.zeros((groups, blocks * WEIGHT_LANES, channels, rows, columns), weight.dtype)
    padded[:, :each] = weight.reshape(groups, each, channels, rows, columns)
    return np.ascontiguousarray(padded.reshape(groups, blocks, WEIGHT_LANES, channels, rows, columns).transpose(0, 1, 4, 5, 3, 2))


def _packed_bias(op: Convolution) -> Array:
    each = len(op.bias) // op.groups
    padded = np.zeros((op.groups, -(-each // WEIGHT_LANES) * WEIGHT_LANES), np.float32)
    padded[:, :each] = op.bias.reshape(op.groups, each)
    return padded


def _flattened(op: Convolution, inputs: Sequence[Buffer], output: Buffer) -> tuple[list[Buffer], Buffer] | None:
    """A 1x1 convolution of images without borders may see several rows as one: its tiles have fewer remainders."""
    plain = op.weight.shape[2:] == (1, 1) and op.stride == (1, 1) and op.padding == (0, 0) and not op.pool
    if not plain or any(b.border for b in (*inputs, output)):
        return None
    height, width = output.height, output.width
    merged = [n for n in range(1, height + 1) if height % n == 0 and n * width % 8 == 0 and height * width > MOST_IN_A_ROW]
    n = merged[0] if merged else height
    *rows, result = (replace(b, height=height // n, width=n * width) for b in (*inputs, output))
    return rows, result


def _sizes(op: Convolution, inputs: Sequence[Buffer], output: Buffer) -> dict[str, int]:
    x, (filters, channels, *kernel) = inputs[0], op.weight.shape
    added = inputs[1] if op.residual else replace(x, stride=0)
    rows, columns = op.out_size(x)
    pairs = {"S": op.stride, "D": op.dilation, "P": op.padding}
    steps = {f"{name}{axis}": pair[at] for name, pair in pairs.items() for at, axis in enumerate("HW")}
    return {
        **{
            "C": -(-channels // op.step),
            "GROUP": channels,
            "K": filters,
            "R": kernel[0],
            "S": kernel[1],
            "H": x.height,
            "W": x.width,
            "OH": rows,
            "OW": columns,
        },
        **steps,
        **{"BIAS": 1, "RESIDUAL": int(op.residual), "POOL": int(op.pool)},
        **{"XR": x.row, "XP": x.stride, "YR": output.row, "YP": output.stride, "RR": added.row, "RP": added.stride},
    }


def _tilings(shape: Geometry, choice: Choice | None, threads: int, direct: bool, portable: bool, grouped: bool) -> list[Tiling]:
    """The tiling for each instruction set, all of the same kind: that of direct sums where only these can be."""
    chosen, own = dict(choice or {}), None if portable else instruction_set()
    amx = own is not None and not grouped and not matrix.refusal()
    lanes = chosen.pop("lanes", None)
    if own is not None:
        usable = chosen and lanes == own.lanes and not (direct and chosen.get("block"))
        if usable and chosen.get("matrix"):  # a file's choice may be any
            usable = amx and Tiling.of(chosen) in matrix.tilings(shape, threads)
        if usable and chosen.get("twins"):
            usable = twins(shape, own) and not grouped and not (chosen.get("matrix") or chosen.get("block"))
        return [Tiling.of(chosen) if usable else modelled(shape, own, threads, direct, amx)] * len(INSTRUCTION_SETS)
    if chosen and not (direct and chosen.get("block")) and not chosen.get("matrix") and not chosen.get("twins"):
        first = Tiling.of(chosen)
    else:
        first, lanes = best(shape, INSTRUCTION_SETS[0], threads, (0, 1) if direct else None), None
    kind = first.block, first.parts
    return [first if isa.lanes == lanes else best(shape, isa, threads, kind) for isa in INSTRUCTION_SETS]


def modelled(shape: Geometry, isa: InstructionSet, threads: int, direct: bool, amx: bool) -> Tiling:
    """The tiling for this machine without a measurement."""
    return (matrix.likely(shape, threads) if amx else None) or best(shape, isa, threads, (0, 1) if direct else None)


def _types(inputs: Sequence[Buffer], output: Buffer) -> str:
    """Types of a layer that are not those of its base."""
    if not output.half and not any(b.half for b in inputs):
        return ""
    return f"  typedef {inputs[-1].type} A;\n  typedef {output.type} Y;\n"


def _layer(sizes: dict[str, int], tilings: Sequence[Tiling], op: Convolution, lines: str = "") -> tuple[str, str]:
    """The name and the definition of the struct of a layer's constants and types; equal layers have equal names."""
    more = dict[str, int]()
    if op.integers is not None:
        more, lines = constants(op, op.integers)
        tilings = tilings if op.integers.zero == 0 else [replace(t, fixed=False) for t in tilings]  # borders count
    picks = {
        name.upper(): f"LT_PICK({', '.join(str(int(getattr(t, name))) for t in tilings)})"
        for name in ("vectors", "height", "width", "split", "fixed", "parts")
    }
    numbers = ", ".join(f"{name} = {value}" for name, value in {**sizes, **picks, **more}.items())
    base = "Integer" if op.integers else "Pairs" if op.half else "Real"
    base = f"Twins<{base}>" if tilings[0].twins else base
    if op.integers is None:
        lines += f"  template <class V> static LT_INLINE V act(const V &v) {{ return act_{op.activation}(v); }}\n"
    body = f"struct $name : {base} {{\n  enum : int {{ {numbers} }};\n{lines}}};"
    name = f"Layer{hashlib.sha256(body.encode()).hexdigest()[:12]}"
    return name, body.replace("$name", name)


def _zero_lanes(output: Buffer, filters: int) -> str:
    at = f"$out + p * {output.row} + q * {output.stride} + {filters}"
    bytes_ = (output.lanes - filters) * output.bytes_each
    return (
        f"\nif ($begin == 0) for (int p = 0; p < {output.height}; ++p) for (int q = 0; q < {output.width}; ++q) memset({at}, 0, {bytes_});"
    )
