"""y[n, p, q, k] = act(b[k] + residual[n, p, q, k] + sum over (r, s, c) of x[n, p u + r - P, q v + s - Q, c] w[r, s, c, k]).

Strides (u, v), paddings (P, Q), optionally the 2x2 maximum of y behind it. NHWC; x (N, H, W, Cs), w packed (R S Cs, Ks), b (Ks,) float32.

Floor: x, w and residual read once, y written once; 2 N OH OW K R S C flop.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.nn import functional as F

from ltcompile.errors import BadSetting
from ltcompile.kernels import _gemm
from ltcompile.kernels._config import Config
from ltcompile.kernels._epilogue import ACTIVATIONS
from ltcompile.kernels._launch import Call, launch
from ltcompile.kernels._layout import IMAGE_STRIDE, accumulator, nhwc, out_sizes, pad_last

TOL = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # relative and absolute, for sums of variance 1


@dataclass(frozen=True)
class Case:
    n: int
    h: int
    w: int
    c: int
    k: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    activation: str = "relu"
    residual: bool = False
    pool: bool = False
    config: Config | None = None

    @property
    def lanes(self) -> int:
        return self.k


CASES = [
    Case(1, 2, 2, 37, 53),
    Case(3, 7, 7, 3, 13, activation="none"),
    Case(1, 1, 1, 61, 37, activation="silu"),
    Case(1, 1, 1, 1, 1, (1, 1), padding=(0, 0), activation="sigmoid"),
    Case(2, 5, 6, 13, 61, (1, 1), padding=(0, 0), activation="relu6", residual=True),
    Case(2, 9, 7, 8, 8, (5, 3), (2, 3), (2, 0), activation="hardswish"),
    Case(1, 12, 12, 3, 37, (7, 7), (2, 2), (3, 3)),
    Case(2, 4, 6, 13, 24, pool=True),
    Case(1, 7, 5, 37, 13, activation="gelu", pool=True, residual=True),
    Case(2, 4, 4, 53, 53, activation="hardsigmoid", residual=True, config=Config(16, 64, 32, swapped=True)),
    Case(1, 4, 4, 61, 37, pool=True, config=Config(16, 64, 64, split_k=4, swapped=True)),
    Case(2, 3, 4, 37, 61, config=Config(16, 64, 64, split_k=4)),
    Case(2, 4, 4, 13, 24, residual=True, pool=True, activation="sigmoid", config=Config(32, 16, 32, split_k=2)),
    Case(1, 9, 9, 64, 64, config=Config(128, 64, 64, stages=3)),
]


def sample(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Random arguments of the operator."""
    x = torch.randn(case.n, case.c, case.h, case.w, dtype=dtype, device=device)
    weight = torch.randn(case.k, case.c, *case.kernel, device=device) / (case.c * case.kernel[0] * case.kernel[1]) ** 0.5
    x = nhwc(x, IMAGE_STRIDE if case.c <= IMAGE_STRIDE else None)
    w, bias = pack(weight, torch.randn(case.k, device=device), dtype, x.shape[-1])
    oh, ow = out_sizes(x, case.kernel, case.stride, case.padding)
    return {
        "x": x,
        "w": w,
        "bias": bias,
        "residual": nhwc(torch.randn(case.n, case.k, oh, ow, dtype=dtype, device=device)) if case.residual else None,
        "kernel": list(case.kernel),
        "stride": list(case.stride),
        "padding": list(case.padding),
        "channels": case.k,
        "activation": case.activation,
        "pool": case.pool,
    }


def pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, in_stride: int | None = None) -> tuple[Tensor, Tensor]:
    """A torch convolution's weight (K, C, R, S) and bias (K,) -> w (R S Cs, Ks), bias (Ks,) float32, zeros in all padding.

    Args:
        in_stride: the channel stride Cs of the input, if it is not `padded(C)`; 4 for images.

    Raises:
        BadSetting: the input's stride is below its channels, or the kernels have no such type.
    """
    return _gemm.pack(weight, bias, dtype, in_stride)


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
    weight = w.view(*kernel, x.shape[-1], bias.shape[0]).permute(3, 2, 0, 1)
    y = F.conv2d(x.permute(0, 3, 1, 2).to(wide), weight.to(wide), bias.to(wide), stride, padding)
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
    channels: int,
    activation: str,
    pool: bool,
    config: Config | None = None,
) -> Call:
    """The call that fills y, which has the shape of `empty`.

    Raises:
        BadSetting: shapes, types or the configuration do not fit together.
    """
    if w.shape != (kernel[0] * kernel[1] * x.shape[-1], bias.shape[0]):
        raise BadSetting(
            f"w is {tuple(w.shape)}, a {kernel[0]}x{kernel[1]} convolution of {x.shape[-1]} channels needs "
            f"{(kernel[0] * kernel[1] * x.shape[-1], bias.shape[0])}; pack it with this input's stride"
        )
    shape = _gemm.Shape(
        (kernel[0], kernel[1]),
        (stride[0], stride[1]),
        (padding[0], padding[1]),
        out_sizes(x, kernel, stride, padding),
        channels,
        x.shape[-1],
        activation=activation,
        pool=pool,
    )
    return _gemm.prepare(x, w, bias, residual, y, shape, config)


@triton_op("ltcompile::conv2d", mutates_args={})
def conv2d(
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
    """x (N, H, W, Cs), packed w and bias -> (N, OH, OW, Ks), halved with `pool`; lanes behind `channels` are zero."""
    if x.device.type == "cpu":
        return reference(x, w, bias, residual, kernel, stride, padding, channels, activation, pool)
    y = empty(x, w, bias, residual, kernel, stride, padding, channels, activation, pool)
    launch(prepare(y, x, w, bias, residual, kernel, stride, padding, channels, activation, pool), wrap_triton)
    return y


conv2d.register_fake(empty)
