# mypy: disable-error-code="import-untyped,untyped-decorator"
"""y[n, k] = b[k] + sum over c of (mean over (h, w) of x[n, h, w, c]) w[c, k].  x (N, H, W, Cs), w packed (Cs, Ks), b (Ks,) float32.

Global average pooling and the classifier in one kernel; the means stay in registers.

Floor: x and w read once, y written once; N H W C + 2 N K C flop.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltcompile.errors import InvalidSetting
from ltcompile.kernels._config import Config, cdiv, head_default, head_space, power_of_two
from ltcompile.kernels._convolution import Convolution
from ltcompile.kernels._epilogue import follow
from ltcompile.kernels._gemm import pack
from ltcompile.kernels._launch import Call, configured, interpreted
from ltcompile.kernels._layout import accumulator
from ltcompile.kernels._operator import operator

__all__ = ["Arguments", "pack", "pooled_head", "prepare", "reference"]
_READ = 4096  # elements of x that a program holds at once


@dataclass(frozen=True)
class Arguments:
    """Images, and the weights and biases of the classifier."""

    x: Tensor
    w: Tensor
    bias: Tensor

    def empty(self) -> Tensor:
        """The output, not filled."""
        return self.x.new_empty(self.x.shape[0], self.bias.shape[0])

    def default(self, warps: int | None = None) -> Config:
        """The configuration to use when none was timed, in so many warps where these are not free."""
        return head_default(self.x.shape[0], self.bias.shape[0], self.x.shape[-1], warps)

    def space(self) -> list[Config]:
        """The configurations worth timing, the default first."""
        return head_space(self.x.shape[0], self.bias.shape[0], self.x.shape[-1])


def reference(a: Arguments) -> Tensor:
    """The output in torch operations."""
    wide = accumulator(a.x.dtype)
    return a.bias.to(wide).addmm(a.x.to(wide).mean((1, 2)), a.w.to(wide)).to(a.x.dtype)


@triton.jit
def _pooled_head(
    x: tl.tensor,  # (N, PIXELS, IN_STRIDE)
    w: tl.tensor,  # (IN_STRIDE, STRIDE)
    bias: tl.tensor,  # (STRIDE,) float32
    y: tl.tensor,  # (N, STRIDE)
    first: tl.tensor,  # the item of program 0
    N: tl.tensor,
    PIXELS: tl.constexpr,
    IN_STRIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BP: tl.constexpr,  # pixels that are read at once
    UPCAST: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    TILES_N: tl.constexpr = (STRIDE + BN - 1) // BN
    item = first + tl.program_id(0)
    image = item // TILES_N * BM + tl.arange(0, BM)
    column = item % TILES_N * BN + tl.arange(0, BN)
    start = tl.where(image < N, image, 0) * (PIXELS * IN_STRIDE)
    if DEPENDENT:
        follow()
    acc = tl.zeros((BM, BN), tl.float32)
    for first_channel in range(0, IN_STRIDE, BK):
        c = first_channel + tl.arange(0, BK)
        total = tl.zeros((BM, BK), tl.float32)
        for first_pixel in range(0, PIXELS, BP):
            pixel = first_pixel + tl.arange(0, BP)
            at = x + start[:, None, None] + (pixel * IN_STRIDE)[None, :, None] + c[None, None, :]
            here = (pixel < PIXELS)[None, :, None] & (c < IN_STRIDE)[None, None, :]
            total += tl.sum(tl.load(at, mask=here, other=0.0).to(tl.float32), 1)
        mean = total / PIXELS
        inside = (c < IN_STRIDE)[:, None] & (column < STRIDE)[None, :]
        b = tl.load(w + c[:, None] * STRIDE + column[None, :], mask=inside, other=0.0)
        if BM == 1:
            acc += tl.sum(tl.trans(mean) * b.to(tl.float32), 0)[None, :]
        elif UPCAST:  # the interpreter multiplies bit patterns of bfloat16
            acc = tl.dot(mean.to(w.dtype.element_ty).to(tl.float32), b.to(tl.float32), acc)
        else:
            acc = tl.dot(mean.to(w.dtype.element_ty), b, acc, input_precision="tf32x3")
    acc += tl.load(bias + column, mask=column < STRIDE, other=0.0)[None, :]
    written = (image < N)[:, None] & (column < STRIDE)[None, :]
    tl.store(y + image[:, None] * STRIDE + column[None, :], acc.to(y.dtype.element_ty), mask=written)


def prepare(y: Tensor, a: Arguments, config: Config | None = None) -> Call:
    """The call that fills y, which is as `a.empty()`. Raises InvalidSetting where shapes, types or `config` do not fit together."""
    images, height, width, in_stride = a.x.shape
    stride = a.bias.shape[0]
    Convolution(a.x, a.w, a.bias, None, [height, width], [1, 1], [0, 0], stride, "none", False).check(y[:, None, None])
    if a.w.shape != (in_stride, stride):
        raise InvalidSetting(f"w is {tuple(a.w.shape)}, an input of {tuple(a.x.shape)} needs {(in_stride, stride)}")
    config = config or a.default()
    if config.block_k < 16 or 1 < config.block_m < 16:
        raise InvalidSetting(f"{config}: block_k is at least 16, block_m 1 or at least 16")
    constants = {
        "PIXELS": height * width,
        "IN_STRIDE": in_stride,
        "STRIDE": stride,
        "BK": config.block_k,
        "BP": min(power_of_two(height * width), max(1, _READ // (config.block_m * config.block_k))),
        "UPCAST": interpreted(_pooled_head) and a.x.dtype == torch.bfloat16,
    }
    programs = cdiv(images, config.block_m) * cdiv(stride, config.block_n)
    return configured(_pooled_head, config, programs, {"x": a.x, "w": a.w, "bias": a.bias, "y": y}, {"N": images}, constants)


pooled_head = operator("pooled_head", Arguments, reference, prepare)
