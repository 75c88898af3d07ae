"""y[n, k] = act(b[k] + sum over c of x[n, c] w[c, k]).  x (N, Cs), w packed (Cs, Ks), b (Ks,) float32.

A convolution of 1x1 images. For the features of flattened (H, W) images use `conv2d` with a kernel of (H, W) and no padding:
their order in memory is (h, w, c), and so is that of its weight.

Floor: x and w read once, y written once; 2 N K C flop.
"""

from dataclasses import dataclass

from torch import Tensor

from ltcompile.errors import InvalidSetting
from ltcompile.kernels import _gemm
from ltcompile.kernels._config import Config
from ltcompile.kernels._gemm import pack
from ltcompile.kernels._launch import Call
from ltcompile.kernels._layout import accumulator
from ltcompile.kernels._operator import operator

__all__ = ["Arguments", "linear", "pack", "prepare", "reference"]


@dataclass(frozen=True)
class Arguments:
    """`channels` counts the outputs that are not padding."""

    x: Tensor
    w: Tensor
    bias: Tensor
    channels: int
    activation: str

    @property
    def convolution(self) -> _gemm.Product:
        """The same as a convolution of 1x1 images."""
        x = self.x[:, None, None]
        return _gemm.Product(x, self.w, self.bias, None, [1, 1], [1, 1], [0, 0], self.channels, self.activation, False)

    def empty(self) -> Tensor:
        """The output, not filled."""
        return self.x.new_empty(self.x.shape[0], self.bias.shape[0])

    def default(self, warps: int | None = None) -> Config:
        """The configuration to use when none was timed, in so many warps where these are not free."""
        return self.convolution.default(warps)

    def space(self) -> list[Config]:
        """The configurations worth timing, the default first."""
        return self.convolution.space()


def reference(a: Arguments) -> Tensor:
    """The output in torch operations."""
    wide = accumulator(a.x.dtype)
    sums = a.bias.to(wide).addmm(a.x.to(wide), a.w.to(wide))
    return a.convolution.finished(sums[:, :, None, None])[:, 0, 0]


def prepare(y: Tensor, a: Arguments, config: Config | None = None) -> Call:
    """The call that fills y, which is as `a.empty()`. Raises InvalidSetting where shapes, types or `config` do not fit together."""
    if a.w.shape != (needed := (a.x.shape[-1], a.bias.shape[0])):
        raise InvalidSetting(f"w is {tuple(a.w.shape)}, an input of {tuple(a.x.shape)} needs {needed}")
    return _gemm.prepare(y[:, None, None], a.convolution, config, window=a.x.shape[-1])


linear = operator("linear", Arguments, reference, prepare)
