# mypy: disable-error-code="import-untyped,untyped-decorator"
"""The implicit matrix product behind convolutions and linear layers, dense and grouped.

    y[n, p, q, k] = act(b[k] + residual[n, p, q, k] + sum over (r, s, c) of x[n, p u + r - P, q v + s - Q, c] w[(r, s, c), k])

M is the pixels (n, p, q), N the output channels, K the flattened (r, s, c): c runs over the padded stride, so that no step of K is
wasted on a tap's rest and every load is 16 bytes. With pooling M is ordered (n, p/2, q/2, 2, 2): the four pixels of a window lie side
by side in one program, which takes their maximum before it writes. A group's channels are a window into the stride (see `grouped`).

`conv2d`, `linear` and `grouped` share it, because they differ in their shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltcompile.errors import InvalidSetting
from ltcompile.kernels._config import Config, cdiv, gemm_default, gemm_space
from ltcompile.kernels._convolution import Convolution
from ltcompile.kernels._epilogue import finish, follow, positions
from ltcompile.kernels._launch import Call, configured, interpreted
from ltcompile.kernels._layout import pad_last, padded

TRIED = 16  # configurations that a tuner compiles and times


@triton.jit
def _read(at: tl.tensor, mask: tl.tensor, MASKED: tl.constexpr) -> tl.tensor:
    if MASKED:
        return tl.load(at, mask=mask, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def _gemm(  # noqa: PLR0912, PLR0915  (a Triton kernel is one function)
    x: tl.tensor,  # (N, H, W, IN_STRIDE)
    w: tl.tensor,  # dense (R S WINDOW, STRIDE), grouped (tiles of N, R S WINDOW, BN)
    bias: tl.tensor,  # (STRIDE,) float32
    residual: tl.tensor,  # (N, OH, OW, STRIDE)
    y: tl.tensor,  # (N, OH, OW, STRIDE), halved with POOL
    partial: tl.tensor,  # (tiles, SPLIT_K, BM, BN) float32
    arrived: tl.tensor,  # (tiles,) int32, zeros; left as zeros
    first: tl.tensor,  # the item of program 0
    M: tl.tensor,
    H: tl.constexpr,
    W: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    IN_STRIDE: tl.constexpr,
    WINDOW: tl.constexpr,
    GROUP_IN: tl.constexpr,
    GROUP_OUT: tl.constexpr,  # 0: dense
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
    BK: tl.constexpr,
    SPLIT_K: tl.constexpr,
    SWAPPED: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    DEPTH: tl.constexpr = R * S * WINDOW
    STEPS: tl.constexpr = (DEPTH + BK * SPLIT_K - 1) // (BK * SPLIT_K)
    TILES_N: tl.constexpr = (STRIDE + BN - 1) // BN
    W_STRIDE: tl.constexpr = BN if GROUP_OUT > 0 else STRIDE
    PADDED: tl.constexpr = PAD_H > 0 or PAD_W > 0
    RAGGED_K: tl.constexpr = DEPTH % (BK * SPLIT_K) != 0
    RAGGED_N: tl.constexpr = GROUP_OUT == 0 and STRIDE % BN != 0
    item = first + tl.program_id(0)
    pid = item // SPLIT_K
    split = item % SPLIT_K
    pid_n = pid % TILES_N  # neighbours share the pixels, which are the larger operand
    pid_m = pid // TILES_N

    n, p, q = positions(pid_m * BM + tl.arange(0, BM), M, OH, OW, POOL)
    pixel = (n * OH + p) * OW + q
    top = p * STEP_H - PAD_H
    left = q * STEP_W - PAD_W
    corner = ((n * H + top) * W + left) * IN_STRIDE
    column = pid_n * BN + tl.arange(0, BN)
    w_column = column
    if GROUP_OUT > 0:
        start = pid_n * BN // GROUP_OUT * GROUP_IN // 8 * 8
        corner += tl.multiple_of(tl.minimum(start, IN_STRIDE - WINDOW), 8)
        w_column = pid_n * (DEPTH * BN) + tl.arange(0, BN)

    if DEPENDENT:
        follow()
    if SWAPPED:
        acc = tl.zeros((BN, BM), tl.float32)
    else:
        acc = tl.zeros((BM, BN), tl.float32)
    for step in tl.range(STEPS, num_stages=STAGES):
        k = (split * STEPS + step) * BK + tl.arange(0, BK)
        c = k % WINDOW
        tap = k // WINDOW
        r = tap // S
        s = tap % S
        deep = k < DEPTH
        row = top[:, None] + r[None, :]
        col = left[:, None] + s[None, :]
        taken = deep[None, :] & (row >= 0) & (row < H) & (col >= 0) & (col < W)
        a = _read(x + corner[:, None] + ((r * W + s) * IN_STRIDE + c)[None, :], taken, PADDED or RAGGED_K)
        wanted = deep[:, None] & (column < STRIDE)[None, :]
        b = _read(w + k[:, None] * W_STRIDE + w_column[None, :], wanted, RAGGED_K or RAGGED_N)
        if UPCAST:  # the interpreter multiplies bit patterns of bfloat16
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        if SWAPPED:
            acc = tl.dot(tl.trans(b), tl.trans(a), acc, input_precision="tf32x3")
        else:
            acc = tl.dot(a, b, acc, input_precision="tf32x3")
    if SWAPPED:
        acc = tl.trans(acc)

    if SPLIT_K == 1:
        finish(acc, bias, residual, y, pixel, pid_m, column, M, CHANNELS, STRIDE, ACT, HAS_RESIDUAL, POOL, BM, BN)
    else:
        block = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
        shares = partial + pid * (SPLIT_K * BM * BN) + block
        tl.store(shares + split * (BM * BN), acc)
        tl.debug_barrier()  # write all of this program's share before announcing it
        if tl.atomic_add(arrived + pid, 1, sem="acq_rel") == SPLIT_K - 1:
            total = tl.zeros((BM, BN), tl.float32)
            for other in range(SPLIT_K):  # always in this order: the same bits in every run
                total += tl.load(shares + other * (BM * BN), cache_modifier=".cg")
            tl.store(arrived + pid, 0)  # ready for the next launch
            finish(total, bias, residual, y, pixel, pid_m, column, M, CHANNELS, STRIDE, ACT, HAS_RESIDUAL, POOL, BM, BN)


def pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, in_stride: int | None = None) -> tuple[Tensor, Tensor]:
    """A torch convolution's weight (K, C, R, S) and bias (K,) -> w (R S Cs, Ks), bias (Ks,) float32, zeros in all padding.

    Args:
        weight: a linear layer's (K, C) counts as 1x1.
        bias: None for zeros.
        dtype: the type of w.
        in_stride: the channel stride Cs of the input, by default `padded(C)`; 4 for images.

    Raises:
        InvalidSetting: `in_stride` is below C, or `dtype` is not a type of the kernels.
    """
    weight = weight[:, :, None, None] if weight.dim() == 2 else weight
    out_channels, channels = weight.shape[:2]
    in_stride = in_stride or padded(channels, dtype)
    if in_stride < channels:
        raise InvalidSetting(f"an input of channel stride {in_stride} cannot hold the {channels} channels of the weight")
    stride = padded(out_channels, dtype)
    w = pad_last(pad_last(weight.permute(2, 3, 0, 1), in_stride).transpose(2, 3), stride)  # (R, S, Cs, Ks)
    return w.reshape(-1, stride).to(dtype).contiguous(), pack_bias(bias, weight, stride)


def pack_bias(bias: Tensor | None, weight: Tensor, stride: int) -> Tensor:
    """(K,) -> (stride,) float32; zeros where `bias` is None."""
    return pad_last(weight.new_zeros(weight.shape[0]) if bias is None else bias, stride).float().contiguous()


@dataclass(frozen=True)
class Product(Convolution):
    """Arguments of a convolution that is a matrix product; `w` is (R S Cs, Ks)."""

    def default(self, warps: int | None = None) -> Config:
        """The configuration to use when none was timed, in so many warps where these are not free."""
        return gemm_default(*self.sizes(), warps=warps)

    def space(self) -> list[Config]:
        """The configurations worth timing, the default first: those of the least estimated time."""
        return gemm_space(*self.sizes())[:TRIED]

    def sizes(self) -> tuple[int, int, int, int, int | None]:
        """Rows, columns and depth of the product, bytes of an element, and the columns of a tile where the packing fixes them."""
        return self.rows, self.bias.shape[0], self.w.shape[0], self.x.element_size(), None


def prepare(y: Tensor, a: Product, config: Config | None, window: int, group: tuple[int, int] = (0, 0)) -> Call:
    """The call that fills y.

    Args:
        y: as `a.empty()`.
        a: the arguments.
        config: by default `a.default()`.
        window: channels that one program reads of a pixel: all, or those of its groups.
        group: channels (in, out) of a group; zeros for a dense convolution.

    Raises:
        InvalidSetting: shapes, types or the configuration do not fit together.
    """
    a.check(y)
    config, block_n = config or a.default(), a.sizes()[-1]
    if block_n not in (None, config.block_n):
        raise InvalidSetting(f"these weights were packed for block_n={block_n}, the configuration has {config.block_n}; pack them again")
    if config.block_k < 16 or (a.pool and config.block_m < 4):
        raise InvalidSetting(f"{config}: block_k is at least 16, and block_m at least 4 where a pooling window must fit")
    tiles = cdiv(a.rows, config.block_m) * cdiv(a.bias.shape[0], config.block_n)
    shared = tiles if config.split_k > 1 else 0
    tensors = {"x": a.x, "w": a.w, "bias": a.bias, "residual": a.x if a.residual is None else a.residual, "y": y}
    scratch = {
        "partial": a.x.new_empty(max(1, shared * config.split_k * config.block_m * config.block_n), dtype=torch.float32),
        "arrived": a.x.new_zeros(max(1, shared), dtype=torch.int32),
    }
    constants = a.constants() | {
        "IN_STRIDE": a.x.shape[-1],
        "WINDOW": window,
        "GROUP_IN": group[0],
        "GROUP_OUT": group[1],
        "BK": config.block_k,
        "SPLIT_K": config.split_k,
        "SWAPPED": config.swapped,
        "STAGES": config.stages,
        "UPCAST": interpreted(_gemm) and a.x.dtype == torch.bfloat16,
    }
    return configured(_gemm, config, tiles * config.split_k, tensors | scratch, {"M": a.rows}, constants)
