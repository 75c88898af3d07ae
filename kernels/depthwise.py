# mypy: disable-error-code="import-untyped,untyped-decorator"
"""y[n, p, q, c] = act(b[c] + residual[n, p, q, c] + sum over (r, s) of x[n, p u + r - P, q v + s - Q, c] w[r, s, c]).

Strides (u, v), paddings (P, Q), optionally the 2x2 maximum of y behind it. NHWC; x (N, H, W, Cs), w packed (R S, Cs), b (Cs,) float32.
No matrix unit: each sum has R S terms, and memory is what it waits for.

Floor: x, w and residual read once, y written once; 2 N OH OW C R S flop.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.nn import functional as F

from ltcompile.errors import BadSetting
from ltcompile.kernels import _gemm
from ltcompile.kernels._config import Config, cdiv, window_default
from ltcompile.kernels._epilogue import ACTIVATIONS, check, constants, finish, follow, positions
from ltcompile.kernels._launch import Call, launch
from ltcompile.kernels._layout import accumulator, nhwc, out_sizes, pad_last, padded

TOL = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    n: int
    h: int
    w: int
    c: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    activation: str = "relu6"
    residual: bool = False
    pool: bool = False
    config: Config | None = None

    @property
    def lanes(self) -> int:
        return self.c


CASES = [
    Case(1, 3, 5, 37),
    Case(1, 1, 1, 61, activation="hardswish"),
    Case(1, 1, 1, 1, (1, 1), padding=(0, 0), activation="none"),
    Case(2, 6, 5, 53, (5, 5), (2, 2), (2, 2), "silu", config=Config(32, 64)),
    Case(2, 5, 7, 13, (7, 3), (1, 2), (3, 0), "sigmoid", residual=True),
    Case(2, 6, 7, 13, pool=True, residual=True),
    Case(3, 4, 4, 40, pool=True, config=Config(32, 16, warps=2)),
]


def sample(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Random arguments of the operator."""
    x = nhwc(torch.randn(case.n, case.c, case.h, case.w, dtype=dtype, device=device))
    weight = torch.randn(case.c, 1, *case.kernel, device=device) / (case.kernel[0] * case.kernel[1]) ** 0.5
    w, bias = pack(weight, torch.randn(case.c, device=device), dtype)
    oh, ow = out_sizes(x, case.kernel, case.stride, case.padding)
    return {
        "x": x,
        "w": w,
        "bias": bias,
        "residual": nhwc(torch.randn(case.n, case.c, oh, ow, dtype=dtype, device=device)) if case.residual else None,
        "kernel": list(case.kernel),
        "stride": list(case.stride),
        "padding": list(case.padding),
        "channels": case.c,
        "activation": case.activation,
        "pool": case.pool,
    }


def pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A torch depthwise convolution's weight (C, 1, R, S) and bias (C,) -> w (R S, Cs), bias (Cs,) float32, zeros in all padding.

    Raises:
        BadSetting: the weight is not that of a depthwise convolution with one filter a channel.
    """
    if weight.shape[1] != 1:
        raise BadSetting(f"a depthwise weight has one input channel a filter, this is {tuple(weight.shape)}; use `grouped`")
    stride = padded(weight.shape[0], dtype)
    w = pad_last(weight[:, 0].permute(1, 2, 0), stride).reshape(-1, stride)
    return w.to(dtype).contiguous(), _gemm.pack_bias(bias, weight, stride)


def empty(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    channels: int,
    activation: str,
    pool: bool,
) -> Tensor:
    """The output, not filled."""
    height, width = out_sizes(x, kernel, stride, padding)
    halve = 2 if pool else 1
    return x.new_empty(x.shape[0], height // halve, width // halve, bias.shape[0])


def reference(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    channels: int,
    activation: str,
    pool: bool,
) -> Tensor:
    wide = accumulator(x.dtype)
    weight = w.view(*kernel, 1, -1).permute(3, 2, 0, 1)  # (Cs, 1, R, S)
    y = F.conv2d(x.permute(0, 3, 1, 2).to(wide), weight.to(wide), bias.to(wide), stride, padding, groups=weight.shape[0])
    if residual is not None:
        y = y + residual.permute(0, 3, 1, 2)
    y = ACTIVATIONS[activation](y)
    y = F.max_pool2d(y, 2) if pool else y
    return pad_last(y.permute(0, 2, 3, 1)[..., :channels], bias.shape[0]).to(x.dtype).contiguous()


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


def prepare(
    y: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    channels: int,
    activation: str,
    pool: bool,
    config: Config | None = None,
) -> Call:
    """The call that fills y, which has the shape of `empty`.

    Raises:
        BadSetting: shapes, types or the configuration do not fit together.
    """
    out = out_sizes(x, kernel, stride, padding)
    rows = check(x, w, bias, residual, y, out, activation, pool)
    if w.shape != (kernel[0] * kernel[1], x.shape[-1]) or x.shape[-1] != bias.shape[0]:
        raise BadSetting(
            f"w is {tuple(w.shape)}, bias {tuple(bias.shape)}; a depthwise {kernel[0]}x{kernel[1]} of {tuple(x.shape)} needs "
            f"{(kernel[0] * kernel[1], x.shape[-1])} and {(x.shape[-1],)}"
        )
    config = config or window_default(rows, x.shape[-1])
    if pool and config.block_m < 4:
        raise BadSetting(f"{config}: block_m is at least 4, so that a pooling window fits")
    return Call(
        kernel=_depthwise,
        programs=cdiv(rows, config.block_m) * cdiv(x.shape[-1], config.block_n),
        tensors={"x": x, "w": w, "bias": bias, "residual": x if residual is None else residual, "y": y},
        numbers={"first": 0, "M": rows},
        constants={
            **constants(x, x.shape[-1], channels, kernel, stride, padding, out, activation, residual, pool),
            "BM": config.block_m,
            "BN": config.block_n,
            "DEPENDENT": False,
        },
        warps=config.warps,
        stages=config.stages,
    )


@triton_op("ltcompile::depthwise", mutates_args={})
def depthwise(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    channels: int,
    activation: str,
    pool: bool,
) -> Tensor:
    """x (N, H, W, Cs), packed w and bias -> (N, OH, OW, Cs), halved with `pool`; lanes behind `channels` are zero."""
    if x.device.type == "cpu":
        return reference(x, w, bias, residual, kernel, stride, padding, channels, activation, pool)
    y = empty(x, w, bias, residual, kernel, stride, padding, channels, activation, pool)
    launch(prepare(y, x, w, bias, residual, kernel, stride, padding, channels, activation, pool), wrap_triton)
    return y


depthwise.register_fake(empty)
