"""What the convolution kernels share around their Triton code: their arguments, the checks of these, and the epilogue's reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ltcompile.errors import InvalidSetting
from ltcompile.kernels._layout import IMAGE_STRIDE, LANES, TYPES, accumulator, geometry, out_sizes, pad_last

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda v: v,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "sigmoid": F.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}
KEEPS_ZERO = frozenset(ACTIVATIONS) - {"sigmoid", "hardsigmoid"}  # padded lanes stay zero by themselves; behind the others kernels mask


@dataclass(frozen=True)
class Convolution:
    """Arguments of a convolution.

    Args:
        x: (N, H, W, Cs).
        w: weights as the kernel packs them.
        bias: (Ks,) float32.
        residual: (N, OH, OW, Ks), added before the activation, or None.
        kernel, stride, padding: two numbers each, for height and width.
        channels: output channels that are not padding.
        activation: one of `ACTIVATIONS`.
        pool: whether the output is its 2x2 maximum.
    """

    x: Tensor
    w: Tensor
    bias: Tensor
    residual: Tensor | None
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    channels: int
    activation: str
    pool: bool

    @property
    def out(self) -> tuple[int, int]:
        """(OH, OW) before pooling."""
        return out_sizes(self.x, self.kernel, self.stride, self.padding)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the output."""
        height, width = (size // 2 if self.pool else size for size in self.out)
        return self.x.shape[0], height, width, self.bias.shape[0]

    @property
    def rows(self) -> int:
        """The pixels that are computed; pooling drops a last odd row or column."""
        images, height, width, _ = self.shape
        return images * height * width * (4 if self.pool else 1)

    def empty(self) -> Tensor:
        """The output, not filled."""
        return self.x.new_empty(self.shape)

    def finished(self, sums: Tensor) -> Tensor:
        """The output in torch operations, from the sums (N, Ks, OH, OW) with their bias."""
        y = ACTIVATIONS[self.activation](sums if self.residual is None else sums + self.residual.permute(0, 3, 1, 2))
        y = F.max_pool2d(y, 2) if self.pool else y
        return pad_last(y.permute(0, 2, 3, 1)[..., : self.channels], self.bias.shape[0]).to(self.x.dtype).contiguous()

    def images(self) -> Tensor:
        """x as (N, Cs, H, W), in the type that sums have."""
        return self.x.permute(0, 3, 1, 2).to(accumulator(self.x.dtype))

    def check(self, y: Tensor) -> None:
        """Raises InvalidSetting where shapes or types do not fit together."""
        x, w, bias, residual = self.x, self.w, self.bias, self.residual
        before = (x.shape[0], *self.out, bias.shape[0])
        if self.activation not in ACTIVATIONS:
            raise InvalidSetting(f"unknown activation {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}")
        if x.dtype not in TYPES or w.dtype != x.dtype or y.dtype != x.dtype or bias.dtype != torch.float32:
            raise InvalidSetting(
                f"x is {x.dtype}, w {w.dtype}, y {y.dtype} and bias {bias.dtype}; the first three must be one of float32, float16 and "
                "bfloat16, and bias float32: pack the weights for x's type"
            )
        if x.shape[-1] % LANES and x.shape[-1] != IMAGE_STRIDE:
            raise InvalidSetting(f"x has a channel stride of {x.shape[-1]}; lay it out with `nhwc`, which pads to a multiple of {LANES}")
        if 0 in self.shape:
            raise InvalidSetting(f"x is {tuple(x.shape)}: the output {self.shape} is empty")
        if y.shape != self.shape:
            raise InvalidSetting(f"y is {tuple(y.shape)}, the output is {self.shape}")
        if residual is not None and (residual.shape != before or residual.dtype != x.dtype):
            raise InvalidSetting(f"residual is {tuple(residual.shape)} of {residual.dtype}, it must be {before} of {x.dtype}")

    def constants(self) -> dict[str, int | bool | str]:
        """What a convolution kernel is compiled for."""
        return geometry(self.x, self.kernel, self.stride, self.padding) | {
            "CHANNELS": self.bias.shape[0] if self.activation in KEEPS_ZERO else self.channels,
            "STRIDE": self.bias.shape[0],
            "ACT": self.activation,
            "HAS_RESIDUAL": self.residual is not None,
            "POOL": self.pool,
        }
