"""Networks of kernels, one call a layer: what `kernels.fuse` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from kernel_cases import weights
from torch import Tensor

from ltcompile import kernels
from ltcompile.kernels import PERSISTENT_WARPS, Config
from ltcompile.kernels._layout import IMAGE_STRIDE


@dataclass(frozen=True)
class Layer:
    """A kernel and its settings. Layers count from 0; `source` and `residual` -1 are the network's input."""

    kind: str
    source: int
    channels: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    activation: str = "none"
    pool: bool = False
    residual: int | None = None
    groups: int = 1


@dataclass(frozen=True)
class Network:
    """Layers on images (n, c, h, w), in `config` or in each kernel's default."""

    n: int
    h: int
    w: int
    c: int
    layers: tuple[Layer, ...]
    config: tuple[Config, ...] | None = None


@dataclass
class Built:
    """A network with memory for every layer's output, and the calls that fill it."""

    network: Network
    x: Tensor
    outputs: list[Tensor]
    calls: list[kernels.Call]

    def clear(self) -> None:
        """NaN wherever something must be written before it is read."""
        for tensor in (*self.outputs, *(call.tensors["partial"] for call in self.calls if "partial" in call.tensors)):
            tensor.fill_(float("nan"))

    def results(self) -> list[Tensor]:
        return [out.clone() for out in self.outputs]

    def check(self, expected: list[Tensor]) -> None:
        """Every layer wrote what is expected, and zeros behind its channels."""
        for layer, out, wanted in zip(self.network.layers, self.outputs, expected, strict=True):
            torch.testing.assert_close(out, wanted, rtol=0, atol=0)
            assert not layer.channels or out[..., layer.channels :].count_nonzero() == 0


def build(network: Network, dtype: torch.dtype, device: str, memory: Callable[[int, Tensor], Tensor] = lambda _, y: y) -> Built:
    """`network` with random weights; layer i writes into `memory(i, a tensor like its output)`."""
    torch.manual_seed(0)
    x = torch.randn(network.n, network.c, network.h, network.w, dtype=dtype, device=device)
    values, widths, calls = [kernels.nhwc(x, IMAGE_STRIDE if network.c <= IMAGE_STRIDE else None)], [network.c], []
    for i, (layer, config) in enumerate(zip(network.layers, network.config or [None] * len(network.layers), strict=True)):
        residual = None if layer.residual is None else values[layer.residual + 1]
        arguments = _arguments(layer, values[layer.source + 1], widths[layer.source + 1], residual)
        y = memory(i, arguments.empty())
        calls.append(kernels.load(layer.kind).prepare(y, arguments, config or arguments.default(PERSISTENT_WARPS)))
        values.append(y)
        widths.append(layer.channels or widths[layer.source + 1])
    return Built(network, values[0], values[1:], calls)


def _arguments(layer: Layer, x: Tensor, width: int, residual: Tensor | None) -> Any:
    """The arguments of `layer` on x, of whose channels `width` are not padding."""
    module = kernels.load(layer.kind)
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(layer).items()}
    settings |= {"x": x.flatten(1) if layer.kind == "linear" else x, "residual": residual, "in_channels": width}
    if layer.channels:
        groups = width if layer.kind == "depthwise" else layer.groups
        inputs = {"linear": x.shape[1:].numel(), "pooled_head": width}.get(layer.kind, width // groups)
        window = layer.kernel if layer.kind in ("conv2d", "depthwise", "grouped") else ()
        rest = {"conv2d": (x.dtype, x.shape[-1]), "grouped": (groups, x.dtype)}.get(layer.kind, (x.dtype,))
        settings["w"], settings["bias"] = module.pack(*weights(layer.channels, inputs, *window, device=x.device), *rest)
    return module.Arguments(**{field.name: settings[field.name] for field in fields(module.Arguments)})


THREE, ONE, TWO = (3, 3), (1, 1), (2, 2)


def chain(*widths: int, classes: int = 10) -> tuple[Layer, ...]:
    """A network like VGG: 3x3 convolutions of these widths, a pooling behind every second one, and a pooled head."""
    convs = [Layer("conv2d", i - 1, width, THREE, padding=ONE, activation="relu", pool=i % 2 == 1) for i, width in enumerate(widths)]
    return (*convs, Layer("pooled_head", len(widths) - 1, classes))


def residual() -> tuple[Layer, ...]:
    """A stem, a block like ResNet's, one like MobileNet's, and a block that halves; three kinds of residuals."""
    return (
        Layer("conv2d", -1, 13, THREE, padding=ONE, activation="relu"),
        Layer("conv2d", 0, 37, THREE, padding=ONE, activation="relu"),
        Layer("conv2d", 1, 13, THREE, padding=ONE, activation="relu", residual=0),
        Layer("conv2d", 2, 61, activation="hardswish"),
        Layer("depthwise", 3, 61, THREE, padding=ONE, activation="hardswish"),
        Layer("conv2d", 4, 13, residual=2),
        Layer("grouped", 5, 26, THREE, TWO, ONE, "relu", groups=13),
        Layer("conv2d", 5, 24, stride=TWO),
        Layer("conv2d", 6, 24, THREE, padding=ONE, activation="silu", residual=7, pool=True),
        Layer("pooled_head", 8, 10),
    )


def vgg(*widths: int) -> tuple[Layer, ...]:
    """VGG-16 of these widths: 13 convolutions, five poolings and a head."""
    convs = [Layer("conv2d", i - 1, c, THREE, padding=ONE, activation="relu", pool=i in (1, 3, 6, 9, 12)) for i, c in enumerate(widths)]
    return (*convs, Layer("pooled_head", 12, 10))


_SPLIT = Config(16, 64, 32, split_k=4, swapped=True)
CHAIN = Network(1, 4, 4, 3, chain(13, 37, 61), (*[Config(16, 32, 64)] * 3, Config(1, 16, 16)))
VGG = Network(1, 32, 32, 3, vgg(37, 61, 101, 118, 203, 190, 171, 240, 181, 133, 97, 85, 64))
HALF_VGG = Network(1, 16, 16, 3, chain(37, 61, 118, 240, 181, 64))
SHORT = Network(1, 8, 8, 3, (*chain(37, 61)[:2], Layer("conv2d", 1, 64, THREE, padding=ONE, residual=1), Layer("pooled_head", 2, 10)))
NETWORKS = {
    "split sums": Network(3, 4, 4, 3, chain(37, 61, 13), (Config(32, 16, 32), _SPLIT, _SPLIT, Config(16, 16, 16))),
    "one layer": Network(3, 1, 1, 61, (Layer("linear", -1, 13, activation="sigmoid"),)),
    "residuals": Network(3, 4, 4, 3, residual()),
    "flattened": Network(
        1,
        11,
        11,
        3,
        (
            Layer("conv2d", -1, 13, (7, 7), TWO, THREE, "sigmoid"),
            Layer("maxpool", 0, kernel=THREE, stride=TWO, padding=ONE),
            Layer("conv2d", 1, 37, THREE, padding=ONE, activation="gelu", pool=True),
            Layer("linear", 2, 61, activation="relu"),
            Layer("linear", 3, 10),
        ),
    ),
    "deep": Network(1, 8, 8, 3, chain(13, 37, 61, 24, 53, 37, 13), (*[Config(32, 32, 128)] * 7, Config(1, 16, 16))),
}
