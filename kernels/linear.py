"""y[n, k] = act(b[k] + sum over c of x[n, c] w[c, k]).  x (N, Cs), w packed (Cs, Ks), b (Ks,) float32.

A convolution of 1x1 images. For the features of flattened (H, W) images use `conv2d` with a kernel of (H, W) and no padding:
their order in memory is (h, w, c), and so is that of its weight.

Floor: x and w read once, y written once; 2 N K C flop.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from ltcompile.errors import BadSetting
from ltcompile.kernels import _gemm
from ltcompile.kernels._config import Config
from ltcompile.kernels._epilogue import ACTIVATIONS
from ltcompile.kernels._launch import Call, launch
from ltcompile.kernels._layout import accumulator, pad_last, padded

TOL = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    n: int
    c: int
    k: int
    activation: str = "none"
    config: Config | None = None

    @property
    def lanes(self) -> int:
        return self.k


CASES = [
    Case(1, 61, 37, "relu"),
    Case(1, 1, 1),
    Case(5, 37, 10),
    Case(70, 53, 61, "silu"),
    Case(2, 13, 13, "sigmoid"),
    Case(3, 400, 53, "gelu", Config(16, 64, 32, split_k=8, swapped=True)),
    Case(40, 512, 10, config=Config(32, 16, 64, split_k=2)),
]


def sample(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Random arguments of the operator."""
    x = pad_last(torch.randn(case.n, case.c, dtype=dtype, device=device), padded(case.c, dtype))
    w, bias = pack(torch.randn(case.k, case.c, device=device) / case.c**0.5, torch.randn(case.k, device=device), dtype)
    return {"x": x, "w": w, "bias": bias, "channels": case.k, "activation": case.activation}


def pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A torch linear layer's weight (K, C) and bias (K,) -> w (Cs, Ks), bias (Ks,) float32, zeros in all padding."""
    return _gemm.pack(weight[:, :, None, None], bias, dtype, None)


def empty(x: Tensor, w: Tensor, bias: Tensor, channels: int, activation: str) -> Tensor:
    """The output, not filled."""
    return x.new_empty(x.shape[0], bias.shape[0])


def reference(x: Tensor, w: Tensor, bias: Tensor, channels: int, activation: str) -> Tensor:
    wide = accumulator(x.dtype)
    y = ACTIVATIONS[activation](torch.addmm(bias.to(wide), x.to(wide), w.to(wide)))
    return pad_last(y[:, :channels], bias.shape[0]).to(x.dtype)


def prepare(y: Tensor, x: Tensor, w: Tensor, bias: Tensor, channels: int, activation: str, config: Config | None = None) -> Call:
    """The call that fills y, which has the shape of `empty`.

    Raises:
        BadSetting: shapes, types or the configuration do not fit together.
    """
    if w.shape != (x.shape[-1], bias.shape[0]):
        raise BadSetting(f"w is {tuple(w.shape)}, an input of {tuple(x.shape)} needs {(x.shape[-1], bias.shape[0])}")
    shape = _gemm.Shape((1, 1), (1, 1), (0, 0), (1, 1), channels, x.shape[-1], activation=activation)
    return _gemm.prepare(x[:, None, None], w, bias, None, y[:, None, None], shape, config)


@triton_op("ltcompile::linear", mutates_args={})
def linear(x: Tensor, w: Tensor, bias: Tensor, channels: int, activation: str) -> Tensor:
    """x (N, Cs), packed w and bias -> (N, Ks); lanes behind `channels` are zero."""
    if x.device.type == "cpu":
        return reference(x, w, bias, channels, activation)
    y = empty(x, w, bias, channels, activation)
    launch(prepare(y, x, w, bias, channels, activation), wrap_triton)
    return y


linear.register_fake(empty)
