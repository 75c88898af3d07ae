"""y[n, p, q, k] = act(b[k] + residual[n, p, q, k] + sum over (r, s) and the c of k's group of x[n, p u + r - P, q v + s - Q, c] w[r, s, c, k]).

Groups are small and, pruned, of odd widths, and their channels lie side by side in x. So the columns of a tile, BN of them, are computed
as a small dense product over the channels that their groups read: a window of Cw channels that starts at a multiple of 8. Weights are
packed a tile at a time, (tiles, R S Cw, BN), with zeros where a column's group does not reach: loads stay 16 bytes wide and the matrix
unit is used, for BN / (a group's columns) times the arithmetic.

    tile j starts at min(floor8(in_group * (j BN // out_group)), Cs - Cw)

Floor: x, w and residual read once, y written once; 2 N OH OW K R S C / groups flop, of which Cw groups / C times as many are done.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.nn import functional as F

from ltcompile.errors import BadSetting
from ltcompile.kernels import _gemm
from ltcompile.kernels._config import Config, cdiv
from ltcompile.kernels._epilogue import ACTIVATIONS
from ltcompile.kernels._launch import Call, launch
from ltcompile.kernels._layout import LANES, accumulator, nhwc, out_sizes, pad_last, padded

TOL = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    n: int
    h: int
    w: int
    groups: int
    group_in: int
    group_out: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    activation: str = "relu"
    residual: bool = False
    pool: bool = False
    config: Config | None = None

    @property
    def lanes(self) -> int:
        return self.groups * self.group_out


CASES = [
    Case(1, 4, 5, 7, 5, 3),
    Case(1, 1, 1, 61, 1, 1, activation="none"),
    Case(2, 3, 3, 2, 13, 37, activation="hardswish"),
    Case(1, 5, 5, 13, 1, 2, (5, 3), (2, 1), (2, 0), "sigmoid", residual=True),
    Case(1, 5, 6, 3, 9, 12, pool=True, residual=True),
    Case(1, 3, 4, 3, 13, 37, config=Config(16, 64, 32, split_k=4, swapped=True)),
    Case(2, 3, 4, 10, 4, 4, config=Config(32, 16, 32, split_k=2)),
]


def sample(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Random arguments of the operator."""
    channels, out_channels = case.groups * case.group_in, case.groups * case.group_out
    x = nhwc(torch.randn(case.n, channels, case.h, case.w, dtype=dtype, device=device))
    weight = torch.randn(out_channels, case.group_in, *case.kernel, device=device)
    weight = weight / (case.group_in * case.kernel[0] * case.kernel[1]) ** 0.5
    w, bias = pack(weight, torch.randn(out_channels, device=device), case.groups, dtype)
    oh, ow = out_sizes(x, case.kernel, case.stride, case.padding)
    return {
        "x": x,
        "w": w,
        "bias": bias,
        "residual": nhwc(torch.randn(case.n, out_channels, oh, ow, dtype=dtype, device=device)) if case.residual else None,
        "kernel": list(case.kernel),
        "stride": list(case.stride),
        "padding": list(case.padding),
        "groups": case.groups,
        "in_channels": channels,
        "channels": out_channels,
        "activation": case.activation,
        "pool": case.pool,
    }


def columns(group_out: int) -> int:
    """The columns of a tile for groups of `group_out` output channels: few for small groups, which waste the rest of the tile."""
    return 16 if group_out <= 8 else 32 if group_out <= 32 else 64


def _starts(tiles: int, block_n: int, group_in: int, group_out: int, in_stride: int, window: int) -> list[int]:
    """The first channel of each tile's window, as the kernel computes it."""
    return [min(j * block_n // group_out * group_in // LANES * LANES, in_stride - window) for j in range(tiles)]


def pack(weight: Tensor, bias: Tensor | None, groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A torch grouped convolution's weight (K, C / groups, R, S) and bias (K,) -> w (tiles, R S Cw, BN), bias (Ks,) float32.

    Raises:
        BadSetting: the output channels do not divide into the groups.
    """
    out_channels, group_in, height, width = weight.shape
    if out_channels % groups:
        raise BadSetting(f"{out_channels} output channels do not divide into {groups} groups")
    group_out = out_channels // groups
    stride, in_stride, block_n = padded(out_channels, dtype), padded(group_in * groups, dtype), columns(group_out)
    tiles = cdiv(stride, block_n)
    dense = weight.new_zeros(tiles * block_n, in_stride, height, width)
    for group in range(groups):
        k, c = slice(group * group_out, (group + 1) * group_out), slice(group * group_in, (group + 1) * group_in)
        dense[k, c] = weight[k]
    lasts = [(min((j + 1) * block_n, out_channels) - 1) // group_out for j in range(tiles)]  # the last group of each tile
    firsts = _starts(tiles, block_n, group_in, group_out, in_stride, 0)
    window = max(cdiv((last + 1) * group_in - first, LANES) * LANES for last, first in zip(lasts, firsts, strict=True))
    starts = _starts(tiles, block_n, group_in, group_out, in_stride, window)
    blocks = [dense[j * block_n : (j + 1) * block_n, start : start + window] for j, start in enumerate(starts)]  # (BN, Cw, R, S)
    w = torch.stack([block.permute(2, 3, 1, 0).reshape(-1, block_n) for block in blocks])
    return w.to(dtype).contiguous(), _gemm.pack_bias(bias, weight, stride)


def empty(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    groups: int,
    in_channels: int,
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
    groups: int,
    in_channels: int,
    channels: int,
    activation: str,
    pool: bool,
) -> Tensor:
    wide = accumulator(x.dtype)
    tiles, depth, block_n = w.shape
    window = depth // (kernel[0] * kernel[1])
    starts = _starts(tiles, block_n, in_channels // groups, channels // groups, x.shape[-1], window)
    blocks = w.view(tiles, *kernel, window, block_n).permute(0, 4, 3, 1, 2).to(wide)  # (tiles, BN, Cw, R, S)
    image = x.permute(0, 3, 1, 2).to(wide)
    y = torch.cat([F.conv2d(image[:, a : a + window], block, None, stride, padding) for a, block in zip(starts, blocks, strict=True)], 1)
    y = y[:, : bias.shape[0]] + bias.to(wide)[:, None, None]
    if residual is not None:
        y = y + residual.permute(0, 3, 1, 2)
    y = ACTIVATIONS[activation](y)
    y = F.max_pool2d(y, 2) if pool else y
    return pad_last(y.permute(0, 2, 3, 1)[..., :channels], bias.shape[0]).to(x.dtype).contiguous()


def prepare(
    y: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    groups: int,
    in_channels: int,
    channels: int,
    activation: str,
    pool: bool,
    config: Config | None = None,
) -> Call:
    """The call that fills y, which has the shape of `empty`.

    Raises:
        BadSetting: shapes, types or the configuration do not fit together.
    """
    tiles, depth, block_n = w.shape
    window = depth // (kernel[0] * kernel[1])
    group = (in_channels // groups, channels // groups)
    needed = (cdiv(bias.shape[0], columns(group[1])), columns(group[1]))
    if (tiles, block_n) != needed or depth % (kernel[0] * kernel[1]) or window > x.shape[-1] or in_channels > x.shape[-1]:
        raise BadSetting(
            f"w is {tuple(w.shape)}, which is not packed for {groups} groups of {group[0]} to {group[1]} channels in {tuple(x.shape)}"
        )
    shape = _gemm.Shape(
        (kernel[0], kernel[1]),
        (stride[0], stride[1]),
        (padding[0], padding[1]),
        out_sizes(x, kernel, stride, padding),
        channels,
        window,
        group,
        activation,
        pool,
        block_n,
    )
    return _gemm.prepare(x, w, bias, residual, y, shape, config)


@triton_op("ltcompile::grouped", mutates_args={})
def grouped(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    groups: int,
    in_channels: int,
    channels: int,
    activation: str,
    pool: bool,
) -> Tensor:
    """x (N, H, W, Cs), packed w and bias -> (N, OH, OW, Ks), halved with `pool`; lanes behind `channels` are zero."""
    if x.device.type == "cpu":
        return reference(x, w, bias, residual, kernel, stride, padding, groups, in_channels, channels, activation, pool)
    y = empty(x, w, bias, residual, kernel, stride, padding, groups, in_channels, channels, activation, pool)
    launch(prepare(y, x, w, bias, residual, kernel, stride, padding, groups, in_channels, channels, activation, pool), wrap_triton)
    return y


grouped.register_fake(empty)
