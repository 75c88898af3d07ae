"""Convolutions and linear layers of a program as `Convolution`s."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ltcompile.engine.cpu import convolution
from ltcompile.engine.cpu.code import Array, Buffer, Convolution
from ltcompile.engine.cpu.plan import Image, Lazy, Plan, Step
from ltcompile.engine.cpu.pooling import mean_over_places
from ltcompile.errors import Unavailable
from ltcompile.lower.passes._fusion import argument, pair
from ltcompile.lower.program import Node, Value


def _fused_conv2d(plan: Plan, node: Node) -> None:
    x, weight, bias, residual = node.args
    settings = dict(node.kwargs)
    settings.pop("dtype", None)
    sizes = {"stride": tuple(settings.pop("stride")), "padding": tuple(settings.pop("padding"))}
    _convolve(plan, node, x, plan.constant(weight), bias, residual=residual, **sizes, **settings)


def _conv2d(plan: Plan, node: Node) -> None:
    weight = plan.constant(node.args[1])
    stride, dilation = pair(argument(node, 3, [1, 1])), pair(argument(node, 5, [1, 1]))
    padding = argument(node, 4, [0, 0])
    if isinstance(padding, str):
        padding = _padding(padding, weight, dilation)
    sizes = {"stride": tuple(stride), "padding": tuple(pair(padding)), "dilation": tuple(dilation)}
    _convolve(plan, node, node.args[0], weight, argument(node, 2, None), groups=argument(node, 6, 1), **sizes)


def _conv1d(plan: Plan, node: Node) -> None:
    stride, padding, dilation = (_one(argument(node, at, default)) for at, default in ((3, 1), (4, 0), (5, 1)))
    weight = plan.constant(node.args[1])[:, :, None]
    sizes = {"stride": (1, stride), "padding": (0, padding), "dilation": (1, dilation)}
    _convolve(plan, node, node.args[0], weight, argument(node, 2, None), groups=argument(node, 6, 1), **sizes)


def _one(value: Any) -> int:
    return int(value[0] if isinstance(value, list) else value)


def _padding(name: str, weight: Array, dilation: list[int]) -> list[int]:
    """The padding that a name stands for."""
    total = [0, 0] if name == "valid" else [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(n % 2 for n in total):
        raise Unavailable("its padding differs from side to side")
    return [n // 2 for n in total]


def _convolve(plan: Plan, node: Node, x: Any, weight: Array, bias: Any, residual: Any = None, **settings: Any) -> None:
    half = plan.placed(x).half
    op = Convolution(weight, _bias(plan, bias, weight), residual=residual is not None, half=half, **settings)
    if half and op.groups > 1:
        raise Unavailable("it has groups, and its input is bf16")
    images = [plan.image(x, convolution.border_of(op, *_places(plan.placed(x).shape)), padded=half)]
    if residual is not None:
        images.append(plan.image(residual))
    emit_layer(plan, node.name, op, images, plan.result(node, 1, half=_is_half(node)))


def _is_half(node: Node) -> bool:
    """Whether its output is bf16."""
    return node.kwargs.get("dtype") == "torch.bfloat16"


def _places(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of images (1, C, H, W) or (1, C, W)."""
    return (1 if len(shape) == 3 else shape[-2]), shape[-1]


def _bias(plan: Plan, bias: Any, weight: Array) -> Array:
    return np.zeros(len(weight), np.float32) if bias is None else plan.constant(bias)


def emit_layer(plan: Plan, name: str, op: Convolution, inputs: list[Image], out: Image) -> None:
    buffers: list[Buffer] = [image.buffer for image in inputs]
    addresses = {f"in{n}": image.address for n, image in enumerate(inputs)}
    layer = convolution.Layer(op, tuple(buffers), out.buffer)
    code = partial(layer.code, plan.choices.get(name), plan.threads, plan.portable)
    plan.steps.append(Step(name, code, {**addresses, "out": out.address}, layer))


def _transposed(plan: Plan, node: Node) -> None:
    weight, bias = plan.constant(node.args[1]).transpose(1, 0, 2, 3), argument(node, 2, None)
    stride, padding = pair(argument(node, 3, [1, 1])), pair(argument(node, 4, [0, 0]))
    if argument(node, 6, 1) != 1 or pair(argument(node, 7, [1, 1])) != [1, 1]:
        raise Unavailable("it is transposed, with groups or dilation")
    emit_transposed(
        plan, node, Convolution(weight, _bias(plan, bias, weight), stride=(stride[0], stride[1]), padding=(padding[0], padding[1]))
    )


def emit_transposed(plan: Plan, node: Node, op: Convolution) -> None:
    """A step of a transposed convolution; the weight of `op` is (K, C, R, S)."""
    if any(size < step for size, step in zip(op.weight.shape[2:], op.stride, strict=True)):
        raise Unavailable("it is transposed, with strides above its kernel")
    border = convolution.transposed_border(op, plan.placed(node.args[0]).shape[2:], node.shape[2:])
    x, out = plan.image(node.args[0], border), plan.result(node, 1, zero=op.integers.output[0] if op.integers else None)
    plan.step(node.name, partial(convolution.emit_transposed, op, x.buffer, out.buffer), out.address, in0=x.address)


def features(plan: Plan, x: Any, last: int, channels: int) -> tuple[Image, tuple[int, ...]]:
    """What a linear layer reads, and (C, H, W) of it as images: of flattened ones the images themselves."""
    source = plan.values.get(x.name) if isinstance(x, Value) else None
    if isinstance(source, Lazy) and len(source.source.shape) == 4 and len(source.shape) == 2:
        return plan.as_image(source.source, 0, 1, x.name), source.source.shape[1:]
    return plan.image(x, channel=last, padded=plan.placed(x).half), (channels, 1, 1)


def _linear(plan: Plan, node: Node) -> None:
    x, weight, bias = node.args[:3]
    w, activation, last = plan.constant(weight), node.kwargs.get("activation", "none"), len(node.shape) - 1
    image, shape = features(plan, x, last, w.shape[1])
    op = Convolution(np.ascontiguousarray(w.reshape(len(w), *shape)), _bias(plan, bias, w), activation=activation, half=image.buffer.half)
    emit_layer(plan, node.name, op, [image], plan.result(node, last, half=_is_half(node)))


def _pooled_head(plan: Plan, node: Node) -> None:
    x, weight, bias = node.args
    _, image = plan.new(f"{node.name}.mean", (1, plan.placed(x).shape[1], 1, 1), 1)
    mean_over_places(plan, f"{node.name}.mean", plan.image(x, padded=True), image)
    w = plan.constant(weight)
    op = Convolution(w[:, :, None, None], _bias(plan, bias, w), activation=node.kwargs["activation"])
    emit_layer(plan, node.name, op, [image], plan.result(node, 1))


RULES = {
    "fused.conv2d": _fused_conv2d,
    "mixed.conv2d": _fused_conv2d,
    "aten.conv2d.default": _conv2d,
    "aten.conv2d.padding": _conv2d,
    "aten.conv1d.default": _conv1d,
    "aten.conv_transpose2d.input": _transposed,
    "fused.linear": _linear,
    "mixed.linear": _linear,
    "aten.linear.default": _linear,
    "fused.pooled_head": _pooled_head,
}
