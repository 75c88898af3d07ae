"""Cases of each kernel, odd widths first: random arguments of these shapes, and how far from float64 the kernel may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile import kernels
from ltcompile.kernels import Config, conv2d, depthwise, grouped, linear, maxpool, nhwc, pooled_head
from ltcompile.kernels._layout import IMAGE_STRIDE, out_sizes, pad_last

SUMS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # relative and absolute, for sums of variance 1
TOLERANCES = dict.fromkeys(("conv2d", "depthwise", "grouped", "linear", "pooled_head"), SUMS) | {"maxpool": dict.fromkeys(SUMS, 0.0)}


@dataclass(frozen=True)
class Conv:
    """A dense convolution."""

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
        """The output channels that are not padding."""
        return self.k

    def sample(self, dtype: torch.dtype, device: str = "cpu") -> conv2d.Arguments:
        x = nhwc(torch.randn(self.n, self.c, self.h, self.w, dtype=dtype, device=device), IMAGE_STRIDE if self.c <= IMAGE_STRIDE else None)
        weight, bias = weights(self.k, self.c, *self.kernel, device=device)
        return conv2d.Arguments(x, *conv2d.pack(weight, bias, dtype, x.shape[-1]), **settings(self, x))


@dataclass(frozen=True)
class Depthwise:
    n: int
    h: int
    w: int
    c: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    activation: str = "relu6"
    residual: bool = False
    pool: bool = False
    config: Config | None = None

    @property
    def lanes(self) -> int:
        return self.c

    def sample(self, dtype: torch.dtype, device: str = "cpu") -> depthwise.Arguments:
        x = nhwc(torch.randn(self.n, self.c, self.h, self.w, dtype=dtype, device=device))
        return depthwise.Arguments(x, *depthwise.pack(*weights(self.c, 1, *self.kernel, device=device), dtype), **settings(self, x))


@dataclass(frozen=True)
class Grouped:
    n: int
    h: int
    w: int
    groups: int
    group_in: int
    group_out: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    activation: str = "relu"
    residual: bool = False
    pool: bool = False
    config: Config | None = None

    @property
    def lanes(self) -> int:
        return self.groups * self.group_out

    def sample(self, dtype: torch.dtype, device: str = "cpu") -> grouped.Arguments:
        channels = self.groups * self.group_in
        x = nhwc(torch.randn(self.n, channels, self.h, self.w, dtype=dtype, device=device))
        weight, bias = weights(self.lanes, self.group_in, *self.kernel, device=device)
        packed = grouped.pack(weight, bias, self.groups, dtype)
        return grouped.Arguments(x, *packed, **settings(self, x), groups=self.groups, in_channels=channels)


@dataclass(frozen=True)
class Linear:
    n: int
    c: int
    k: int
    activation: str = "none"
    config: Config | None = None

    @property
    def lanes(self) -> int:
        return self.k

    def sample(self, dtype: torch.dtype, device: str = "cpu") -> linear.Arguments:
        x = pad_last(torch.randn(self.n, self.c, dtype=dtype, device=device), kernels.padded(self.c, dtype))
        return linear.Arguments(x, *linear.pack(*weights(self.k, self.c, device=device), dtype), self.k, self.activation)


@dataclass(frozen=True)
class Maxpool:
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

    def sample(self, dtype: torch.dtype, device: str = "cpu") -> maxpool.Arguments:
        """All negative in the first channel, where zeros of the padding would show."""
        x = torch.randn(self.n, self.c, self.h, self.w, dtype=dtype, device=device)
        x[:, 0] = -x[:, 0].abs() - 1
        return maxpool.Arguments(nhwc(x), list(self.kernel), list(self.stride), list(self.padding))


@dataclass(frozen=True)
class PooledHead:
    n: int
    h: int
    w: int
    c: int
    k: int
    config: Config | None = None

    @property
    def lanes(self) -> int:
        return self.k

    def sample(self, dtype: torch.dtype, device: str = "cpu") -> pooled_head.Arguments:
        x = nhwc(torch.randn(self.n, self.c, self.h, self.w, dtype=dtype, device=device))
        return pooled_head.Arguments(x, *pooled_head.pack(*weights(self.k, self.c, device=device), dtype))


def weights(out: int, channels: int, *window: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """A weight whose sums have variance 1, and a bias."""
    weight = torch.randn(out, channels, *window, device=device)
    return weight / weight[0].numel() ** 0.5, torch.randn(out, device=device)


def settings(case: Conv | Depthwise | Grouped, x: Tensor) -> dict[str, Any]:
    """What convolutions take after their weights."""
    size = out_sizes(x, case.kernel, case.stride, case.padding)
    residual = nhwc(torch.randn(case.n, case.lanes, *size, dtype=x.dtype, device=x.device)) if case.residual else None
    geometry = {"kernel": list(case.kernel), "stride": list(case.stride), "padding": list(case.padding)}
    return {"residual": residual, **geometry, "channels": case.lanes, "activation": case.activation, "pool": case.pool}


CASES: dict[str, list[Any]] = {
    "conv2d": [
        Conv(1, 2, 2, 37, 53),
        Conv(3, 7, 7, 3, 13, activation="none"),
        Conv(1, 1, 1, 61, 37, activation="silu"),
        Conv(1, 1, 1, 1, 1, (1, 1), padding=(0, 0), activation="sigmoid"),
        Conv(2, 5, 6, 13, 61, (1, 1), padding=(0, 0), activation="relu6", residual=True),
        Conv(2, 9, 7, 8, 8, (5, 3), (2, 3), (2, 0), activation="hardswish"),
        Conv(1, 12, 12, 3, 37, (7, 7), (2, 2), (3, 3)),
        Conv(2, 4, 6, 13, 24, pool=True),
        Conv(1, 7, 5, 37, 13, activation="gelu", pool=True, residual=True),
        Conv(2, 4, 4, 53, 53, activation="hardsigmoid", residual=True, config=Config(16, 64, 32, swapped=True)),
        Conv(1, 4, 4, 61, 37, pool=True, config=Config(16, 64, 64, split_k=4, swapped=True)),
        Conv(2, 3, 4, 37, 61, config=Config(16, 64, 64, split_k=4)),
        Conv(2, 4, 4, 13, 24, residual=True, pool=True, activation="sigmoid", config=Config(32, 16, 32, split_k=2)),
        Conv(1, 9, 9, 64, 64, config=Config(128, 64, 64, stages=3)),
    ],
    "depthwise": [
        Depthwise(1, 3, 5, 37),
        Depthwise(1, 1, 1, 61, activation="hardswish"),
        Depthwise(1, 1, 1, 1, (1, 1), padding=(0, 0), activation="none"),
        Depthwise(2, 6, 5, 53, (5, 5), (2, 2), (2, 2), "silu", config=Config(32, 64)),
        Depthwise(2, 5, 7, 13, (7, 3), (1, 2), (3, 0), "sigmoid", residual=True),
        Depthwise(2, 6, 7, 13, pool=True, residual=True),
        Depthwise(3, 4, 4, 40, pool=True, config=Config(32, 16, warps=2)),
    ],
    "grouped": [
        Grouped(1, 4, 5, 7, 5, 3),
        Grouped(1, 1, 1, 61, 1, 1, activation="none"),
        Grouped(2, 3, 3, 2, 13, 37, activation="hardswish"),
        Grouped(1, 5, 5, 13, 1, 2, (5, 3), (2, 1), (2, 0), "sigmoid", residual=True),
        Grouped(1, 5, 6, 3, 9, 12, pool=True, residual=True),
        Grouped(1, 3, 4, 3, 13, 37, config=Config(16, 64, 32, split_k=4, swapped=True)),
        Grouped(2, 3, 4, 10, 4, 4, config=Config(32, 16, 32, split_k=2)),
    ],
    "linear": [
        Linear(1, 61, 37, "relu"),
        Linear(1, 1, 1),
        Linear(5, 37, 10),
        Linear(70, 53, 61, "silu"),
        Linear(2, 13, 13, "sigmoid"),
        Linear(3, 400, 53, "gelu", Config(16, 64, 32, split_k=8, swapped=True)),
        Linear(40, 512, 10, config=Config(32, 16, 64, split_k=2)),
    ],
    "maxpool": [
        Maxpool(1, 7, 7, 37),
        Maxpool(1, 1, 1, 61),
        Maxpool(1, 1, 1, 1, (1, 1), (1, 1), (0, 0)),
        Maxpool(2, 8, 5, 13, (2, 3), (2, 1), (0, 1)),
        Maxpool(2, 5, 4, 53, (5, 5), (1, 1), (2, 2), Config(64, 64)),
    ],
    "pooled_head": [
        PooledHead(1, 7, 7, 37, 53),
        PooledHead(1, 1, 1, 61, 10),
        PooledHead(1, 1, 1, 1, 1),
        PooledHead(3, 2, 5, 13, 61, Config(16, 16, 16)),
        PooledHead(17, 4, 4, 53, 10),
        PooledHead(2, 8, 8, 37, 100, Config(1, 64, 16)),
    ],
}


def moved(arguments: Any, **how: Any) -> Any:
    """`arguments` with `tensor.to(**how)` of every tensor."""
    return type(arguments)(**{name: value.to(**how) if isinstance(value, Tensor) else value for name, value in vars(arguments).items()})


def operator(name: str) -> Any:
    return getattr(kernels.load(name), name)


def call(name: str, arguments: Any) -> Tensor:
    """The operator of a kernel's arguments."""
    y: Tensor = operator(name)(**vars(arguments))
    return y


class Calling(nn.Module):
    """A network of one operator, between two of torch's."""

    def __init__(self, name: str, arguments: Any) -> None:
        super().__init__()
        self.operator = operator(name)
        self.rest = {key: value for key, value in vars(arguments).items() if key != "x"}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.operator(x + 0, **self.rest) * 1
        return y
