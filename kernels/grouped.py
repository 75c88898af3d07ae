"""y[n, p, q, k] = act(b[k] + residual[n, p, q, k] + sum over (r, s) and the c of k's group of x[n, p u + r - P, q v + s - Q, c] w[r, s, c, k]).

Groups are small and, pruned, of odd widths, and their channels are adjacent in x. So the BN columns of a tile are computed
as a small dense product over the channels that their groups read: a window of Cw channels that starts at a multiple of 8. Weights are
packed a tile at a time, (tiles, R S Cw, BN), with zeros where a column's group does not reach: loads stay 16 bytes wide and the matrix
unit is used, for BN / (a group's columns) times the arithmetic.

    tile j starts at min(floor8(in_group * (j BN // out_group)), Cs - Cw)

Floor: x, w and residual read once, y written once; 2 N OH OW K R S C / groups flop, of which Cw groups / C times as many are done.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ltcompile.errors import InvalidSetting
from ltcompile.kernels import _gemm
from ltcompile.kernels._config import Config, cdiv
from ltcompile.kernels._launch import Call
from ltcompile.kernels._layout import LANES, padded
from ltcompile.kernels._operator import operator


@dataclass(frozen=True)
class Arguments(_gemm.Product):
    """`w` is (tiles, R S Cw, BN); `in_channels` counts the channels of x that are not padding."""

    groups: int
    in_channels: int

    def sizes(self) -> tuple[int, int, int, int, int | None]:
        """Rows, columns and depth of the product, bytes of an element, and the columns of a tile, which the packing fixes."""
        return self.rows, self.bias.shape[0], self.w.shape[1], self.x.element_size(), self.w.shape[2]

    @property
    def window(self) -> int:
        """Cw, the channels that a tile reads."""
        return self.w.shape[1] // (self.kernel[0] * self.kernel[1])

    @property
    def group(self) -> tuple[int, int]:
        """The input and output channels of a group."""
        return self.in_channels // self.groups, self.channels // self.groups


def columns(group_out: int) -> int:
    """The columns of a tile for groups of `group_out` output channels: few for small groups, which waste the rest of the tile."""
    return 16 if group_out <= 8 else 32 if group_out <= 32 else 64


def _starts(tiles: int, block_n: int, group_in: int, group_out: int, in_stride: int, window: int) -> list[int]:
    """The first channel of each tile's window, as the kernel computes it."""
    return [min(j * block_n // group_out * group_in // LANES * LANES, in_stride - window) for j in range(tiles)]


def pack(weight: Tensor, bias: Tensor | None, groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A torch grouped convolution's weight (K, C / groups, R, S) and bias (K,) -> w (tiles, R S Cw, BN), bias (Ks,) float32.

    Raises:
        InvalidSetting: the output channels do not divide into the groups.
    """
    out_channels, group_in, height, width = weight.shape
    if out_channels % groups:
        raise InvalidSetting(f"{out_channels} output channels do not divide into {groups} groups")
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


def reference(a: Arguments) -> Tensor:
    """The output in torch operations."""
    images, (tiles, _, block_n), window = a.images(), a.w.shape, a.window
    starts = _starts(tiles, block_n, *a.group, a.x.shape[-1], window)
    blocks = a.w.view(tiles, *a.kernel, window, block_n).permute(0, 4, 3, 1, 2).to(images.dtype)  # (tiles, BN, Cw, R, S)
    sums = [F.conv2d(images[:, at : at + window], w, None, a.stride, a.padding) for at, w in zip(starts, blocks, strict=True)]
    return a.finished(torch.cat(sums, 1)[:, : a.bias.shape[0]] + a.bias.to(images.dtype)[:, None, None])


def prepare(y: Tensor, a: Arguments, config: Config | None = None) -> Call:
    """The call that fills y, which is as `a.empty()`. Raises InvalidSetting where shapes, types or `config` do not fit together."""
    (tiles, depth, block_n), in_stride = a.w.shape, a.x.shape[-1]
    needed = (cdiv(a.bias.shape[0], columns(a.group[1])), columns(a.group[1]))
    if (tiles, block_n) != needed or depth % (a.kernel[0] * a.kernel[1]) or max(a.window, a.in_channels) > in_stride:
        raise InvalidSetting(
            f"w is {tuple(a.w.shape)}, which is not packed for {a.groups} groups of {a.group[0]} to {a.group[1]} channels in "
            f"{tuple(a.x.shape)}"
        )
    return _gemm.prepare(y, a, config, a.window, a.group)


grouped = operator("grouped", Arguments, reference, prepare)
