"""y[n, p, q, k] = act(b[k] + residual[n, p, q, k] + sum over (r, s, c) of x[n, p u + r - P, q v + s - Q, c] w[r, s, c, k]).

Strides (u, v), paddings (P, Q), optionally the 2x2 maximum of y. NHWC; x (N, H, W, Cs), w packed (R S Cs, Ks), b (Ks,) float32.

Floor: x, w and residual read once, y written once; 2 N OH OW K R S C flop.
"""

from torch import Tensor
from torch.nn import functional as F

from ltcompile.errors import InvalidSetting
from ltcompile.kernels import _gemm
from ltcompile.kernels._config import Config
from ltcompile.kernels._gemm import Product as Arguments
from ltcompile.kernels._gemm import pack
from ltcompile.kernels._launch import Call
from ltcompile.kernels._operator import operator

__all__ = ["Arguments", "conv2d", "pack", "prepare", "reference"]


def reference(a: Arguments) -> Tensor:
    """The output in torch operations."""
    images = a.images()
    weight = a.w.view(*a.kernel, a.x.shape[-1], a.bias.shape[0]).permute(3, 2, 0, 1)
    return a.finished(F.conv2d(images, weight.to(images.dtype), a.bias.to(images.dtype), a.stride, a.padding))


def prepare(y: Tensor, a: Arguments, config: Config | None = None) -> Call:
    """The call that fills y, which is as `a.empty()`. Raises InvalidSetting where shapes, types or `config` do not fit together."""
    needed = (a.kernel[0] * a.kernel[1] * a.x.shape[-1], a.bias.shape[0])
    if a.w.shape != needed:
        raise InvalidSetting(
            f"w is {tuple(a.w.shape)}, a {a.kernel[0]}x{a.kernel[1]} convolution of {a.x.shape[-1]} channels needs {needed}; "
            "pack it with this input's stride"
        )
    return _gemm.prepare(y, a, config, window=a.x.shape[-1])


conv2d = operator("conv2d", Arguments, reference, prepare)
