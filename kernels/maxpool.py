# mypy: disable-error-code="import-untyped,untyped-decorator"
"""y[n, p, q, c] = max over (r, s) of x[n, p u + r - P, q v + s - Q, c], where padding never wins.  NHWC; x (N, H, W, Cs), y (N, OH, OW, Cs).

Any window, stride (u, v) and padding (P, Q) of at most half the window: the 3x3/2 of a stem. The 2x2/2 behind a convolution
is that convolution's `pool`.

Floor: x read once, y written once.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from ltcompile.errors import InvalidSetting
from ltcompile.kernels._config import Config, cdiv, window_default, window_space
from ltcompile.kernels._epilogue import follow, larger, positions
from ltcompile.kernels._launch import Call, configured
from ltcompile.kernels._layout import TYPES, geometry, out_sizes
from ltcompile.kernels._operator import operator


@dataclass(frozen=True)
class Arguments:
    """`kernel`, `stride` and `padding` are two numbers each, for height and width."""

    x: Tensor
    kernel: list[int]
    stride: list[int]
    padding: list[int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the output."""
        return self.x.shape[0], *out_sizes(self.x, self.kernel, self.stride, self.padding), self.x.shape[-1]

    @property
    def rows(self) -> int:
        """The pixels of the output."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    def empty(self) -> Tensor:
        """The output, not filled."""
        return self.x.new_empty(self.shape)

    def default(self, warps: int | None = None) -> Config:
        """The configuration to use when none was timed, in so many warps where these are not free."""
        return window_default(self.rows, self.x.shape[-1], warps)

    def space(self) -> list[Config]:
        """The configurations worth timing, the default first."""
        return window_space(self.rows, self.x.shape[-1])


def reference(a: Arguments) -> Tensor:
    """The output in torch operations."""
    return F.max_pool2d(a.x.permute(0, 3, 1, 2), a.kernel, a.stride, a.padding).permute(0, 2, 3, 1).contiguous()


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


def prepare(y: Tensor, a: Arguments, config: Config | None = None) -> Call:
    """The call that fills y, which is as `a.empty()`.

    Raises:
        InvalidSetting: shapes or types do not fit together, or the padding is more than half the window.
    """
    if any(2 * p > k for p, k in zip(a.padding, a.kernel, strict=True)):
        raise InvalidSetting(f"padding {a.padding} is more than half of the window {a.kernel}")
    if y.shape != a.shape or y.dtype != a.x.dtype or a.x.dtype not in TYPES or y.numel() == 0:
        raise InvalidSetting(f"y is {tuple(y.shape)} of {y.dtype}, the output of {a.x.dtype} is {a.shape}")
    config = config or a.default()
    programs = cdiv(a.rows, config.block_m) * cdiv(a.x.shape[-1], config.block_n)
    constants = geometry(a.x, a.kernel, a.stride, a.padding) | {"STRIDE": a.x.shape[-1]}
    return configured(_maxpool, config, programs, {"x": a.x, "y": y}, {"M": a.rows}, constants)


maxpool = operator("maxpool", Arguments, reference, prepare)
