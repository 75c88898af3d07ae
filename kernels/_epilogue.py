# mypy: disable-error-code="import-untyped,untyped-decorator"
"""What the kernels share around their sums: which pixel a row is, and what is done to a sum, in float32, before it is written.

`KEEPS_ZERO` are the activations that map 0 to 0, so padded lanes stay zero by themselves; behind the others `finish` masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from ltcompile.errors import BadSetting
from ltcompile.kernels._layout import IMAGE_STRIDE, LANES, TYPES

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda v: v,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "sigmoid": F.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}
KEEPS_ZERO = frozenset(ACTIVATIONS) - {"sigmoid", "hardsigmoid"}


@triton.jit
def larger(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """max(a, b), where NaN wins, as in torch."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clamp01(v: tl.tensor) -> tl.tensor:
    return tl.minimum(larger(v, 0.0), 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activate(v: tl.tensor, NAME: tl.constexpr) -> tl.tensor:
    """`ACTIVATIONS[NAME]` of a block of float32."""
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
    """Rows of M -> (n, p, q). Rows behind the end become pixel 0: they read what is there and are not written."""
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
    """Let the next kernel start, and wait for the one before: everything that it wrote is seen, and everything before it has ended too.

    Behind the arithmetic of addresses, in front of the first read. Never in a pipelined loop, whose reads start ahead of its body.
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
    """Bias, residual, activation, 2x2 maximum; then written."""
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


def check(x: Tensor, w: Tensor, bias: Tensor, residual: Tensor | None, y: Tensor, out: tuple[int, int], activation: str, pool: bool) -> int:
    """The rows of M of a convolution with `out` = (OH, OW) positions before pooling.

    Raises:
        BadSetting: shapes or types do not fit together.
    """
    stride = bias.shape[0]
    halve = 2 if pool else 1
    final = (x.shape[0], out[0] // halve, out[1] // halve, stride)
    before = (x.shape[0], *out, stride)
    if activation not in ACTIVATIONS:
        raise BadSetting(f"there is no activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    if x.dtype not in TYPES or w.dtype != x.dtype or y.dtype != x.dtype or bias.dtype != torch.float32:
        raise BadSetting(
            f"x is {x.dtype}, w {w.dtype}, y {y.dtype} and bias {bias.dtype}; the first three must be one of float32, float16 and "
            "bfloat16, and bias float32: pack the weights for x's type"
        )
    if x.shape[-1] % LANES and x.shape[-1] != IMAGE_STRIDE:
        raise BadSetting(f"x has a channel stride of {x.shape[-1]}; lay it out with `nhwc`, which pads to a multiple of {LANES}")
    if 0 in final:
        raise BadSetting(f"x is {tuple(x.shape)}: the output {final} is empty")
    if y.shape != final:
        raise BadSetting(f"y is {tuple(y.shape)}, the output is {final}")
    if residual is not None and (residual.shape != before or residual.dtype != x.dtype):
        raise BadSetting(f"residual is {tuple(residual.shape)} of {residual.dtype}, it must be {before} of {x.dtype}")
    return x.shape[0] * final[1] * final[2] * halve * halve


def constants(
    x: Tensor,
    stride: int,
    channels: int,
    kernel: Sequence[int],
    step: Sequence[int],
    padding: Sequence[int],
    out: tuple[int, int],
    activation: str,
    residual: Tensor | None,
    pool: bool,
) -> dict[str, int | bool | str]:
    """What every convolution kernel wants to know when it is compiled."""
    return {
        "H": x.shape[1],
        "W": x.shape[2],
        "OH": out[0],
        "OW": out[1],
        "CHANNELS": stride if activation in KEEPS_ZERO else channels,
        "STRIDE": stride,
        "R": kernel[0],
        "S": kernel[1],
        "STEP_H": step[0],
        "STEP_W": step[1],
        "PAD_H": padding[0],
        "PAD_W": padding[1],
        "ACT": activation,
        "HAS_RESIDUAL": residual is not None,
        "POOL": pool,
    }
