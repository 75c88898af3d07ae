"""What include/int8.h reads: weights of four input channels in one number of 32 bits, and what becomes of sums."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from ltcompile.engine.cpu.code import Array, Convolution, Integers, literal
from ltcompile.errors import Unavailable

MOST_ROUNDED = float(1 << 30)  # what a processor rounds to int32
SMALL = 64  # weights whose products fit into 16 bits in pairs


def quads_of(channels: int) -> int:
    return -(-channels // 4)


def packed_weight(op: Convolution) -> NDArray[np.int32]:
    """(K, C / groups, R, S) of whole numbers -> (K, quads, R, S), or in pairs of bf16."""
    filters, channels, rows, columns = op.weight.shape
    values = torch.from_numpy(op.weight).bfloat16().view(torch.int16).numpy() if op.half else op.weight.astype(np.int8)
    padded = np.zeros((filters, -(-channels // op.step) * op.step, rows, columns), values.dtype)
    padded[:, :channels] = values
    return np.ascontiguousarray(padded.reshape(filters, -1, op.step, rows, columns).transpose(0, 1, 3, 4, 2)).view(np.int32)[..., 0]


def paired(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """What include/twins.h reads of the weight (1, 1, R, S, C, 16) and the bias of at most eight filters: two of C next to each other."""
    weight, bias = arrays["weight"], np.array(arrays["bias"])
    _, _, rows, columns, channels, _ = weight.shape
    padded = np.zeros((rows, columns, channels + channels % 2, 8), weight.dtype)
    padded[:, :, :channels] = weight[0, 0, ..., :8]
    start = bias.reshape(-1)[:16]
    start[::2], start[1::2] = start[:8].copy(), 0
    pairs = padded.reshape(rows, columns, -1, 2, 8).transpose(0, 1, 2, 4, 3)
    return {"weight": np.ascontiguousarray(pairs), "bias": bias}


def packed_depthwise(op: Convolution) -> Array:
    """(C, 1, R, S) -> (C / 16, R, quads, 16): four taps in a number, the last taps first."""
    filters, _, rows, columns = op.weight.shape
    blocks, quads = -(-filters // 16), quads_of(columns)
    padded = np.zeros((blocks * 16, rows, 4 * quads), np.int8)
    padded[:filters, :, 4 * quads - columns :] = op.weight[:, 0]
    taps = padded.reshape(blocks, 16, rows, quads, 4)[:, :, :, ::-1]
    return np.ascontiguousarray(taps.transpose(0, 2, 3, 1, 4)).view(np.float32)


def packed_bias(op: Convolution, integers: Integers) -> Array:
    """What sums begin with, factors, and what is added where x - 128 is multiplied: (3, groups * filters of a group in blocks of 16).

    Raises:
        Unavailable: a sum or a product does not fit into 32 bits.
    """
    weight = op.weight.astype(np.int64).reshape(len(op.weight), -1)
    start = op.bias.astype(np.int64) - integers.zero * weight.sum(1)
    largest = np.abs(start) + 255 * np.abs(weight).sum(1)
    factor = np.asarray(integers.factor, np.float32)
    if not factor.shape == op.bias.shape == op.weight.shape[:1]:
        raise Unavailable("its biases and factors are not one for each filter")
    if largest.max(initial=0) >= 1 << 31 or not bool((factor >= 0).all() and (largest * factor < MOST_ROUNDED).all()):
        raise Unavailable("its sums do not fit into 32 bits")
    each = len(op.weight) // op.groups if not is_depthwise(op) else len(op.weight)
    padded = np.zeros((3, len(weight) // each, -(-each // 16) * 16), np.int32)
    for at, values in enumerate((start.astype(np.int32), factor.view(np.int32), (128 * weight.sum(1)).astype(np.int32))):
        padded[at, :, :each] = values.reshape(-1, each)
    return padded.view(np.float32)


def is_depthwise(op: Convolution) -> bool:
    """Whether it is one filter a channel, in a form that the templates for that have."""
    return op.groups == len(op.weight) > 1 and op.weight.shape[1] == 1 and op.dilation == (1, 1) and not op.pool


def constants(op: Convolution, integers: Integers) -> tuple[dict[str, int], str]:
    """The numbers of a layer, and its C++ constants in floating point."""
    zero, low, high = integers.output
    each = len(op.weight) // op.groups if not is_depthwise(op) else len(op.weight)
    found = {"CONV_ZERO": zero, "CONV_LOW": low, "CONV_HIGH": high, "SMALL": int(np.abs(op.weight).max(initial=0) <= SMALL)}
    found["SEGMENT"] = len(op.weight) // each * (-(-each // 16) * 16)
    if not integers.added:
        return found, ""
    a, b, *factors = integers.added[:4]
    check_factors(*factors)
    found |= {name: int(v) for name, v in zip(("ZERO_A", "ZERO_B", "ZERO", "LOW", "HIGH"), (a, b, *integers.added[4:]), strict=True)}
    return found, f"  static constexpr float FACTOR_A = {literal(factors[0])}, FACTOR_B = {literal(factors[1])};\n"


def check_factors(*factors: float) -> None:
    """Raises Unavailable where a number of eight bits times a factor cannot be rounded."""
    if not all(0 <= factor < MOST_ROUNDED / (1 << 18) for factor in factors):
        raise Unavailable("its scales are too far apart")
