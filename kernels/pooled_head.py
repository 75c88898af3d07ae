# mypy: disable-error-code="import-untyped,untyped-decorator"
"""y[n, k] = b[k] + sum over c of (mean over (h, w) of x[n, h, w, c]) w[c, k].  x (N, H, W, Cs), w packed (Cs, Ks), b (Ks,) float32.

Global average pooling and the classifier in one kernel; the means never leave the registers.

Floor: x and w read once, y written once; N H W C + 2 N K C flop.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from ltcompile.errors import BadSetting
from ltcompile.kernels import _gemm
from ltcompile.kernels._config import Config, cdiv, head_default, power_of_two
from ltcompile.kernels._epilogue import check, follow
from ltcompile.kernels._launch import Call, interpreted, launch
from ltcompile.kernels._layout import accumulator, nhwc

TOL = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
_READ = 4096  # elements of x that a program holds at once


@dataclass(frozen=True)
class Case:
    n: int
    h: int
    w: int
    c: int
    k: int
    config: Config | None = None

    @property
    def lanes(self) -> int:
        return self.k


CASES = [
    Case(1, 7, 7, 37, 53),
    Case(1, 1, 1, 61, 10),
    Case(1, 1, 1, 1, 1),
    Case(3, 2, 5, 13, 61, Config(16, 16, 16)),
    Case(17, 4, 4, 53, 10),
    Case(2, 8, 8, 37, 100, Config(1, 64, 16)),
]


def sample(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Random arguments of the operator."""
    x = nhwc(torch.randn(case.n, case.c, case.h, case.w, dtype=dtype, device=device))
    w, bias = pack(torch.randn(case.k, case.c, device=device) / case.c**0.5, torch.randn(case.k, device=device), dtype)
    return {"x": x, "w": w, "bias": bias}


def pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A torch linear layer's weight (K, C) and bias (K,) -> w (Cs, Ks), bias (Ks,) float32, zeros in all padding."""
    return _gemm.pack(weight[:, :, None, None], bias, dtype, None)


def empty(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """The output, not filled."""
    return x.new_empty(x.shape[0], bias.shape[0])


def reference(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    wide = accumulator(x.dtype)
    return torch.addmm(bias.to(wide), x.to(wide).mean((1, 2)), w.to(wide)).to(x.dtype)


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


def prepare(y: Tensor, x: Tensor, w: Tensor, bias: Tensor, config: Config | None = None) -> Call:
    """The call that fills y, which has the shape of `empty`.

    Raises:
        BadSetting: shapes, types or the configuration do not fit together.
    """
    images, height, width, in_stride = x.shape
    stride = bias.shape[0]
    check(x, w, bias, None, y[:, None, None], (1, 1), "none", False)
    if w.shape != (in_stride, stride):
        raise BadSetting(f"w is {tuple(w.shape)}, an input of {tuple(x.shape)} needs {(in_stride, stride)}")
    config = config or head_default(images, stride, in_stride)
    if config.block_k < 16 or 1 < config.block_m < 16:
        raise BadSetting(f"{config}: block_k is at least 16, block_m 1 or at least 16")
    return Call(
        kernel=_pooled_head,
        programs=cdiv(images, config.block_m) * cdiv(stride, config.block_n),
        tensors={"x": x, "w": w, "bias": bias, "y": y},
        numbers={"first": 0, "N": images},
        constants={
            "PIXELS": height * width,
            "IN_STRIDE": in_stride,
            "STRIDE": stride,
            "BM": config.block_m,
            "BN": config.block_n,
            "BK": config.block_k,
            "BP": min(power_of_two(height * width), max(1, _READ // (config.block_m * config.block_k))),
            "UPCAST": interpreted(_pooled_head) and x.dtype == torch.bfloat16,
            "DEPENDENT": False,
        },
        warps=config.warps,
        stages=config.stages,
    )


@triton_op("ltcompile::pooled_head", mutates_args={})
def pooled_head(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """x (N, H, W, Cs), packed w and bias -> (N, Ks); lanes behind the classes are zero."""
    if x.device.type == "cpu":
        return reference(x, w, bias)
    y = empty(x, w, bias)
    launch(prepare(y, x, w, bias), wrap_triton)
    return y


pooled_head.register_fake(empty)
