"""The memory layout of activations: NHWC, contiguous, channels padded with zeros so that 16-byte loads never straddle a pixel.

    x[n, h, w, c] at ((n H + h) W + w) Cs + c,   Cs = padded(C)

Images of up to four channels may have Cs = 4, which keeps the first layer's reads small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltcompile.errors import InvalidSetting

IMAGE_STRIDE = 4
LANES = 8  # 16 bytes of half precision, 32 of single
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def padded(channels: int, dtype: torch.dtype) -> int:
    """The channel stride of `channels` channels of type `dtype`: the next multiple of 8 elements.

    Raises:
        InvalidSetting: `dtype` is not a type of the kernels.
    """
    if dtype not in TYPES:
        raise InvalidSetting(f"kernels compute in float32, float16 and bfloat16, not in {dtype}; convert the network first")
    return -(-channels // LANES) * LANES


def nhwc(x: Tensor, stride: int | None = None) -> Tensor:
    """(N, C, H, W) -> contiguous (N, H, W, stride), zeros behind the C channels; `stride` is by default `padded(C)`."""
    channels = x.shape[1]
    return F.pad(x.permute(0, 2, 3, 1), (0, (stride or padded(channels, x.dtype)) - channels)).contiguous()


def nchw(y: Tensor, channels: int) -> Tensor:
    """(N, H, W, Cs) -> (N, channels, H, W), a view."""
    return y[..., :channels].permute(0, 3, 1, 2)


def pad_last(x: Tensor, size: int) -> Tensor:
    """`x` with zeros behind its last dimension, up to `size`."""
    return F.pad(x, (0, size - x.shape[-1]))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type of sums: float32, as in the kernels, or float64 for a float64 input."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def out_sizes(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> tuple[int, int]:
    """(OH, OW) of a window that slides over x (N, H, W, Cs). Raises InvalidSetting where the window is larger than x."""
    height, width = ((s + 2 * p - k) // u + 1 for s, k, u, p in zip(x.shape[1:3], kernel, stride, padding, strict=True))
    if height < 1 or width < 1:
        raise InvalidSetting(f"a window of {tuple(kernel)} does not fit into x {tuple(x.shape)} with a padding of {tuple(padding)}")
    return height, width


def geometry(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> dict[str, Any]:
    """The constants of a kernel that slides a window over x (N, H, W, Cs)."""
    sizes = (*x.shape[1:3], *out_sizes(x, kernel, stride, padding), *kernel, *stride, *padding)
    return dict(zip(("H", "W", "OH", "OW", "R", "S", "STEP_H", "STEP_W", "PAD_H", "PAD_W"), sizes, strict=True))
