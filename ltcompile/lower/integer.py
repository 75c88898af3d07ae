"""Operations on unsigned integers of eight bits, with their meaning in PyTorch: what generated code computes bit by bit.

A number r is held as q = clamp(round(r / scale) + zero, 0, 255). Sums of products are exact, in int32. They become integers of the output's
scale by products in float32, each of which is rounded, and one rounding to the nearest integer, ties to even: as ONNX Runtime computes
QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w))). An output is (zero, low, high): it is clamped to low ... high, which also is
what becomes of a ReLU. NaN is quantized as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 1e6  # of what is rounded: far outside of 0 ... 255
PARTS = 2048  # of the distance between two pixels; its square times 255 fits into 32 bits


def rounded(v: Tensor, output: Sequence[int]) -> Tensor:
    """Float32 numbers of the output's scale as its integers."""
    zero, low, high = output
    if v.is_meta:  # where shapes alone are wanted, and each operation takes long
        return v.new_empty(v.shape, dtype=torch.uint8)
    whole = torch.nan_to_num(v.clamp(-MOST, MOST), nan=-MOST).round().to(torch.int32)
    return (whole + zero).clamp(low, high).to(torch.uint8)


def quantize(x: Tensor, *, scale: float, zero: int) -> Tensor:
    """x / scale as integers."""
    return rounded(x / torch.full((1,), scale, device=x.device), (zero, 0, 255))


def dequantize(x: Tensor, *, scale: float, zero: int) -> Tensor:
    """The numbers that integers stand for."""
    return _real(x, zero) * torch.full((1,), scale, device=x.device)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    factor: Tensor,
    residual: Tensor | None,
    *,
    zero: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    output: list[int],
    added: list[float],
    pool: bool,
) -> Tensor:
    """A convolution of x - zero with int8 weights (K, C / groups, R, S), int32 bias and a float32 factor for each filter.

    With a residual, the result is an operand of `add`, whose (zeros, factors, output) are the seven numbers `added`. Then comes a 2x2 max pool.
    """
    sums = F.conv2d((x.double() - zero), weight.double(), bias.double(), stride, padding, dilation, groups).float()
    y = rounded(sums * factor[:, None, None], output)
    if residual is not None:
        y = add(y, residual, zeros=added[:2], factors=added[2:4], output=added[4:])
    return max_pool2d(y, [2, 2], [2, 2], [0, 0]) if pool else y


def linear(x: Tensor, weight: Tensor, bias: Tensor, factor: Tensor, *, zero: int, output: list[int]) -> Tensor:
    """The same of rows (..., C), by weights (K, C)."""
    return rounded(F.linear(x.double() - zero, weight.double(), bias.double()).float() * factor, output)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    factor: Tensor,
    *,
    zero: int,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    output: list[int],
) -> Tensor:
    """The same of a transposed convolution, by weights (C, K, R, S)."""
    sums = F.conv_transpose2d(x.double() - zero, weight.double(), bias.double(), stride, padding, output_padding).float()
    return rounded(sums * factor[:, None, None], output)


def add(x: Tensor, y: Tensor, *, zeros: Sequence[float], factors: Sequence[float], output: Sequence[float]) -> Tensor:
    """(x - zero) factor + (y - zero) factor, where factors are those of scales to the output's."""
    a, b = (_real(v, int(zero)) * torch.full((1,), factor, device=v.device) for v, zero, factor in zip((x, y), zeros, factors, strict=True))
    return rounded(a + b, [int(v) for v in output])


def mul(x: Tensor, y: Tensor, *, zeros: list[int], factor: float, output: list[int]) -> Tensor:
    """(x - zero) (y - zero) factor."""
    return rounded(_real(x, zeros[0]) * _real(y, zeros[1]) * torch.full((1,), factor, device=x.device), output)


def mean(x: Tensor, *, zero: int, factor: float, output: list[int]) -> Tensor:
    """The sum of x - zero over all places, times a factor: (N, C, H, W) -> (N, C, 1, 1)."""
    sums = (x.to(torch.int32) - zero).sum((2, 3), keepdim=True, dtype=torch.int32).float()
    return rounded(sums * torch.full((1,), factor, device=x.device), output)


def avg_pool2d(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    *,
    counts_padding: bool,
    zero: int,
    factor: float,
    output: list[int],
) -> Tensor:
    """The sum of x - zero over each window, times a factor that is first divided by the window's places, with those of the padding or not."""
    sums, places = (
        F.avg_pool2d(v, kernel, stride, padding, divisor_override=1).float() for v in (x.double() - zero, torch.ones_like(x).double())
    )
    if counts_padding:
        places = torch.full_like(places, kernel[0] * kernel[1])
    return rounded(sums * (torch.full((1,), factor, device=x.device) / places), output)


def upsample_bilinear2d(x: Tensor, size: list[int], *, align_corners: bool) -> Tensor:
    """Images of `size` rows and columns; each number is the sum of four neighbours by weights in 2048ths along each axis, halves rounded up."""
    (images, channels, _, _), (rows, columns) = x.shape, size
    if x.is_meta:
        return x.new_empty((images, channels, rows, columns))
    v = x.to(torch.int32)
    for dim, count in ((3, columns), (2, rows)):
        low, high, part = (torch.tensor(n, dtype=torch.int32) for n in between(x.shape[dim], count, align_corners))
        part = part.reshape(-1, *[1] * (3 - dim))
        v = v.index_select(dim, low) * (PARTS - part) + v.index_select(dim, high) * part
    return ((v + PARTS**2 // 2) >> 22).to(torch.uint8)


def between(old: int, new: int, align_corners: bool) -> tuple[list[int], list[int], list[int]]:
    """For each of `new` places: the two of `old` places between which PyTorch interpolates, and the weight of the second in 2048ths."""
    at = F.interpolate(torch.arange(old, dtype=torch.float64)[None, None], new, mode="linear", align_corners=align_corners)[0, 0]
    low = at.floor().clamp(0, old - 1)
    return low.int().tolist(), (low + 1).clamp(max=old - 1).int().tolist(), ((at - low) * PARTS).round().int().tolist()


def max_pool2d(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """The largest integer of each window."""
    return F.max_pool2d(x.float(), kernel, stride, padding).to(torch.uint8)


def lookup(x: Tensor, table: Tensor, *, zero: int) -> Tensor:
    """table[x]: any function of the integers, of 256 values: integers with the zero point `zero`, or numbers."""
    del zero  # with which readers pad
    return table[x.long()]


def _real(x: Tensor, zero: int) -> Tensor:
    return (x.to(torch.int32) - zero).float()


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (
        *(quantize, dequantize, conv2d, conv_transpose2d, linear, add, mul, mean),
        *(max_pool2d, avg_pool2d, upsample_bilinear2d, lookup),
    )
}
