# mypy: disable-error-code="import-untyped,untyped-decorator"
"""y[n, p, q, c] = act(b[c] + residual[n, p, q, c] + sum over (r, s) of x[n, p u + r - P, q v + s - Q, c] w[r, s, c]).

Strides (u, v), paddings (P, Q), optionally the 2x2 maximum of y. NHWC; x (N, H, W, Cs), w packed (R S, Cs), b (Cs,) float32.
It uses no matrix unit: each sum has R S terms, and memory bounds its time.

Floor: x, w and residual read once, y written once; 2 N OH OW C R S flop.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from ltcompile.errors import InvalidSetting
from ltcompile.kernels import _gemm
from ltcompile.kernels._config import Config, cdiv, window_default, window_space
from ltcompile.kernels._convolution import Convolution
from ltcompile.kernels._epilogue import finish, follow, positions
from ltcompile.kernels._launch import Call, configured
from ltcompile.kernels._layout import pad_last, padded
from ltcompile.kernels._operator import operator


@dataclass(frozen=True)
class Arguments(Convolution):
    """`w` is (R S, Cs); x and y have the same channels."""

    def default(self, warps: int | None = None) -> Config:
        """The configuration to use when none was timed, in so many warps where these are not free."""
        return window_default(self.rows, self.x.shape[-1], warps)

    def space(self) -> list[Config]:
        """The configurations worth timing, the default first."""
        return window_space(self.rows, self.x.shape[-1])


def pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A torch depthwise convolution's weight (C, 1, R, S) and bias (C,) -> w (R S, Cs), bias (Cs,) float32, zeros in all padding.

    Raises:
        InvalidSetting: the weight is not that of a depthwise convolution with one filter a channel.
    """
    if weight.shape[1] != 1:
        raise InvalidSetting(f"a depthwise weight has one input channel a filter, this is {tuple(weight.shape)}; use `grouped`")
    stride = padded(weight.shape[0], dtype)
    w = pad_last(weight[:, 0].permute(1, 2, 0), stride).reshape(-1, stride)
    return w.to(dtype).contiguous(), _gemm.pack_bias(bias, weight, stride)


def reference(a: Arguments) -> Tensor:
    """The output in torch operations."""
    images = a.images()
    weight = a.w.view(*a.kernel, 1, -1).permute(3, 2, 0, 1).to(images.dtype)  # (Cs, 1, R, S)
    return a.finished(F.conv2d(images, weight, a.bias.to(images.dtype), a.stride, a.padding, groups=weight.shape[0]))


@triton.jit
def _depthwise(
    x: tl.tensor,  # (N, H, W, STRIDE)
    w: tl.tensor,  # (R S, STRIDE)
    bias: tl.tensor,  # (STRIDE,) float32
    residual: tl.tensor,  # (N, OH, OW, STRIDE)
    y: tl.tensor,  # (N, OH, OW, STRIDE), halved with POOL
    first: tl.tensor,  # the item of program 0
    M: tl.tensor,
    H: tl.constexpr,
    W: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    CHANNELS: tl.constexpr,
    STRIDE: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    ACT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    POOL: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    TILES_N: tl.constexpr = (STRIDE + BN - 1) // BN
    item = first + tl.program_id(0)
    pid_m = item // TILES_N
    column = item % TILES_N * BN + tl.arange(0, BN)
    n, p, q = positions(pid_m * BM + tl.arange(0, BM), M, OH, OW, POOL)
    if DEPENDENT:
        follow()
    acc = tl.zeros((BM, BN), tl.float32)
    for r in range(R):  # not unrolled here: large windows would hold every tap at once
        for s in tl.static_range(S):
            row = p * STEP_H - PAD_H + r
            col = q * STEP_W - PAD_W + s
            inside = (row >= 0) & (row < H) & (col >= 0) & (col < W)
            at = x + (((n * H + row) * W + col) * STRIDE)[:, None] + column[None, :]
            a = tl.load(at, mask=inside[:, None] & (column < STRIDE)[None, :], other=0.0).to(tl.float32)
            acc += a * tl.load(w + (r * S + s) * STRIDE + column, mask=column < STRIDE, other=0.0).to(tl.float32)[None, :]
    pixel = (n * OH + p) * OW + q
    finish(acc, bias, residual, y, pixel, pid_m, column, M, CHANNELS, STRIDE, ACT, HAS_RESIDUAL, POOL, BM, BN)


def prepare(y: Tensor, a: Arguments, config: Config | None = None) -> Call:
    """The call that fills y, which is as `a.empty()`. Raises InvalidSetting where shapes, types or `config` do not fit together."""
    a.check(y)
    taps, channels = a.kernel[0] * a.kernel[1], a.x.shape[-1]
    if a.w.shape != (taps, channels) or channels != a.bias.shape[0]:
        raise InvalidSetting(
            f"w is {tuple(a.w.shape)}, bias {tuple(a.bias.shape)}; a depthwise {a.kernel[0]}x{a.kernel[1]} of {tuple(a.x.shape)} needs "
            f"{(taps, channels)} and {(channels,)}"
        )
    config = config or a.default()
    if a.pool and config.block_m < 4:
        raise InvalidSetting(f"{config}: block_m is at least 4, so that a pooling window fits")
    programs = cdiv(a.rows, config.block_m) * cdiv(channels, config.block_n)
    tensors = {"x": a.x, "w": a.w, "bias": a.bias, "residual": a.x if a.residual is None else a.residual, "y": y}
    return configured(_depthwise, config, programs, tensors, {"M": a.rows}, a.constants())


depthwise = operator("depthwise", Arguments, reference, prepare)
