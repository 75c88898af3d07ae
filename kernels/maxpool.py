# mypy: disable-error-code="import-untyped,untyped-decorator"
"""y[n, p, q, c] = max over (r, s) of x[n, p u + r - P, q v + s - Q, c], where padding never wins.  NHWC; x (N, H, W, Cs), y (N, OH, OW, Cs).

Any window, stride (u, v) and padding (P, Q) of at most half the window: the 3x3/2 of a stem. The 2x2/2 behind a convolution
is that convolution's `pool`.

Floor: x read once, y written once.
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
from ltcompile.kernels._config import Config, cdiv, window_default
from ltcompile.kernels._epilogue import follow, larger, positions
from ltcompile.kernels._launch import Call, launch
from ltcompile.kernels._layout import TYPES, nhwc, out_sizes

TOL = {torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0}  # nothing is rounded


@dataclass(frozen=True)
class Case:
    n: int
    h: int
    w: int
    c: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (1, 1)
    config: Config | None = None

    @property
    def lanes(self) -> int:
        return self.c


CASES = [
    Case(1, 7, 7, 37),
    Case(1, 1, 1, 61),
    Case(1, 1, 1, 1, (1, 1), (1, 1), (0, 0)),
    Case(2, 8, 5, 13, (2, 3), (2, 1), (0, 1)),
    Case(2, 5, 4, 53, (5, 5), (1, 1), (2, 2), Config(64, 64)),
]


def sample(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Random arguments of the operator; all negative in the first channel, where zeros from outside would show."""
    x = torch.randn(case.n, case.c, case.h, case.w, dtype=dtype, device=device)
    x[:, 0] = -x[:, 0].abs() - 1
    return {"x": nhwc(x), "kernel": list(case.kernel), "stride": list(case.stride), "padding": list(case.padding)}


def empty(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """The output, not filled."""
    height, width = out_sizes(x, kernel, stride, padding)
    return x.new_empty(x.shape[0], height, width, x.shape[-1])


def reference(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    return F.max_pool2d(x.permute(0, 3, 1, 2), kernel, stride, padding).permute(0, 2, 3, 1).contiguous()


@triton.jit
def _maxpool(
    x: tl.tensor,  # (N, H, W, STRIDE)
    y: tl.tensor,  # (N, OH, OW, STRIDE)
    first: tl.tensor,  # the item of program 0
    M: tl.tensor,
    H: tl.constexpr,
    W: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    STRIDE: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    TILES_N: tl.constexpr = (STRIDE + BN - 1) // BN
    item = first + tl.program_id(0)
    m = item // TILES_N * BM + tl.arange(0, BM)
    column = item % TILES_N * BN + tl.arange(0, BN)
    n, p, q = positions(m, M, OH, OW, False)
    if DEPENDENT:
        follow()
    best = tl.full((BM, BN), float("-inf"), tl.float32)
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            row = p * STEP_H - PAD_H + r
            col = q * STEP_W - PAD_W + s
            inside = (row >= 0) & (row < H) & (col >= 0) & (col < W)
            at = x + (((n * H + row) * W + col) * STRIDE)[:, None] + column[None, :]
            mask = inside[:, None] & (column < STRIDE)[None, :]
            best = larger(best, tl.load(at, mask=mask, other=float("-inf")).to(tl.float32))
    tl.store(y + m[:, None] * STRIDE + column[None, :], best.to(y.dtype.element_ty), mask=(m < M)[:, None] & (column < STRIDE)[None, :])


def prepare(y: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int], config: Config | None = None) -> Call:
    """The call that fills y, which has the shape of `empty`.

    Raises:
        BadSetting: shapes or types do not fit together, or the padding is more than half the window.
    """
    images, height, width, channels = x.shape
    out = out_sizes(x, kernel, stride, padding)
    if 2 * padding[0] > kernel[0] or 2 * padding[1] > kernel[1]:
        raise BadSetting(f"padding {padding} is more than half of the window {kernel}")
    if y.shape != (images, *out, channels) or y.dtype != x.dtype or x.dtype not in TYPES or y.numel() == 0:
        raise BadSetting(f"y is {tuple(y.shape)} of {y.dtype}, the output of {x.dtype} is {(images, *out, channels)}")
    rows = images * out[0] * out[1]
    config = config or window_default(rows, channels)
    return Call(
        kernel=_maxpool,
        programs=cdiv(rows, config.block_m) * cdiv(channels, config.block_n),
        tensors={"x": x, "y": y},
        numbers={"first": 0, "M": rows},
        constants={
            "H": height,
            "W": width,
            "OH": out[0],
            "OW": out[1],
            "STRIDE": channels,
            "R": kernel[0],
            "S": kernel[1],
            "STEP_H": stride[0],
            "STEP_W": stride[1],
            "PAD_H": padding[0],
            "PAD_W": padding[1],
            "BM": config.block_m,
            "BN": config.block_n,
            "DEPENDENT": False,
        },
        warps=config.warps,
        stages=config.stages,
    )


@triton_op("ltcompile::maxpool", mutates_args={})
def maxpool(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """x (N, H, W, Cs) -> (N, OH, OW, Cs); padded lanes stay as they are, zero."""
    if x.device.type == "cpu":
        return reference(x, kernel, stride, padding)
    y = empty(x, kernel, stride, padding)
    launch(prepare(y, x, kernel, stride, padding), wrap_triton)
    return y


maxpool.register_fake(empty)
