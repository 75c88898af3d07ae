# mypy: disable-error-code="import-untyped,untyped-decorator"
"""Triton functions that the kernels share around their sums: which pixel a row is, and the epilogue in float32 before the output is written."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def larger(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """max(a, b), where NaN wins, as in torch."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clamp01(v: tl.tensor) -> tl.tensor:
    return tl.minimum(larger(v, 0.0), 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activate(v: tl.tensor, NAME: tl.constexpr) -> tl.tensor:
    """The activation NAME (`_convolution.ACTIVATIONS`) of a block of float32."""
    if NAME == "relu":
        v = larger(v, 0.0)
    elif NAME == "relu6":
        v = tl.minimum(larger(v, 0.0), 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif NAME == "silu":
        v = v * tl.sigmoid(v)
    elif NAME == "hardswish":
        v = v * clamp01(v / 6.0 + 0.5)
    elif NAME == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif NAME == "sigmoid":
        v = tl.sigmoid(v)
    elif NAME == "hardsigmoid":
        v = clamp01(v / 6.0 + 0.5)
    return v


@triton.jit
def positions(m: tl.tensor, M: tl.tensor, OH: tl.constexpr, OW: tl.constexpr, POOL: tl.constexpr) -> tl.tensor:
    """Rows of M -> (n, p, q). Rows behind the end become pixel 0: they are read, and not written."""
    m = tl.where(m < M, m, 0)
    if POOL:  # (n, p/2, q/2, 2, 2): a window's four pixels are neighbours
        window = m // 4
        q = window % (OW // 2) * 2 + m % 2
        p = window // (OW // 2) % (OH // 2) * 2 + m // 2 % 2
        n = window // ((OW // 2) * (OH // 2))
    else:
        q = m % OW
        p = m // OW % OH
        n = m // (OW * OH)
    return n, p, q


@triton.jit
def follow() -> None:
    """Let the next kernel start, and wait until the previous one, and all before it, have ended and their results are visible.

    Call it after the arithmetic of addresses and before the first read, never in a pipelined loop, whose reads start ahead of its body.
    """
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()


@triton.jit
def finish(
    acc: tl.tensor,  # (BM, BN) float32
    bias: tl.tensor,  # (STRIDE,) float32
    residual: tl.tensor,  # (N, OH, OW, STRIDE)
    y: tl.tensor,
    pixel: tl.tensor,  # (BM,) rows of the residual
    pid_m: tl.tensor,
    column: tl.tensor,  # (BN,)
    M: tl.tensor,
    CHANNELS: tl.constexpr,  # lanes from here on become zero
    STRIDE: tl.constexpr,
    ACT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    POOL: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
) -> None:
    """Add bias and residual, apply the activation and the 2x2 maximum, write."""
    inside = column[None, :] < STRIDE
    acc += tl.load(bias + column, mask=column < STRIDE, other=0.0)[None, :]
    if HAS_RESIDUAL:
        acc += tl.load(residual + pixel[:, None] * STRIDE + column[None, :], mask=inside, other=0.0).to(tl.float32)
    acc = activate(acc, ACT)
    if CHANNELS < STRIDE:
        acc = tl.where(column[None, :] < CHANNELS, acc, 0.0)
    if POOL:
        acc = tl.reduce(tl.reshape(acc, (BM // 4, 4, BN)), 1, larger)
        row = pid_m * (BM // 4) + tl.arange(0, BM // 4)
        rows = M // 4
    else:
        row = pid_m * BM + tl.arange(0, BM)
        rows = M
    target = y + row[:, None] * STRIDE + column[None, :]
    tl.store(target, acc.to(y.dtype.element_ty), mask=(row[:, None] < rows) & inside)
