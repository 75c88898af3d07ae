"""Activations in the kernels' layout (NHWC, channel stride a multiple of 8, zeros behind the channels), weights packed once.

A fused operation goes to a kernel where there is one for its shape; pointwise operations that keep zeros zero stay in the layout; a flatten
in front of linear layers becomes a view, and their weights take its order. Everything else is left to PyTorch, behind a conversion. Each
kind of operation has a rule: `refusal` are its preconditions, and `place` is its rewrite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltcompile.kernels import IMAGE_STRIDE, padded
from ltcompile.lower.passes._fusion import argument, pair
from ltcompile.lower.program import Node, Program, Value

_KEEP_ZEROS = frozenset(
    f"aten.{name}.default"
    for name in ["relu", "relu6", "hardtanh", "silu", "hardswish", "gelu", "tanh", "mish", "leaky_relu", "elu", "neg"]
)
_BINARY = frozenset({"aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"})


def rewrite(program: Program) -> tuple[Program, dict[str, str]]:
    """`program` with its fused operations on kernels, and the outcome of each node."""
    laid = _Layout(program)
    for node in program.nodes:
        refusal, place = _RULES.get(node.target, _POINTWISE)
        if reason := refusal(laid, node):
            laid.leave(node, reason)
        else:
            place(laid, node)
    return laid.done(), laid.outcomes


class _Layout:
    """The program under construction: which values are in the layout, and which are as PyTorch has them."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.outcomes: dict[str, str] = {}
        self._entered: dict[str, Node] = {}  # value -> the node that has it in the layout
        self._flat: dict[str, tuple[int, ...]] = {}  # flattened value in the layout -> the (C, H, W) that it was
        self._plain = {program.input, *program.constants}

    def dtype(self) -> torch.dtype:
        """The type of the weights; biases stay in fp32 in every precision."""
        floating = {c.dtype for c in self.program.constants.values() if c.is_floating_point()}
        return next(iter(floating - {torch.float32}), torch.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that PyTorch's value has."""
        if name in self.program.by_name:
            return self.program.by_name[name].shape
        return self.program.input_shape if name == self.program.input else tuple(self.program.constants[name].shape)

    def is_in(self, value: Any) -> bool:
        """Whether the value is in the layout already."""
        return isinstance(value, Value) and value.name in self._entered

    def is_weight(self, value: Any) -> bool:
        """Whether the value is a constant, or None for a bias of zeros."""
        return value is None or (isinstance(value, Value) and value.name in self.program.constants)

    def flat_from(self, value: Value) -> tuple[int, ...] | None:
        """(C, H, W) of the image that `value` is the flattened form of, or None."""
        return self._flat.get(value.name)

    def entered(self, value: Value, image: bool = False) -> Node:
        """The node that has `value` in the layout; an `image` of up to four channels gets a stride of 4."""
        if value.name not in self._entered:
            shape = self.shape(value.name)
            stride = IMAGE_STRIDE if image and shape[1] <= IMAGE_STRIDE else padded(shape[1], self.dtype())
            physical = (shape[0], *shape[2:], stride)
            source, cast = self._through_cast(value.name)
            node = Node(f"{value.name}.in", "layout.enter", (Value(self.plain(source)), stride), cast, physical)
            self.nodes.append(node)
            self._entered[value.name] = node
        return self._entered[value.name]

    def _through_cast(self, name: str) -> tuple[str, dict[str, str]]:
        """The value to read and the type to convert it to: images are cast while they enter the layout."""
        node = self.program.by_name.get(name)
        if node is None or node.target != "aten._to_copy.default":
            return name, {}
        return node.reads[0], {"dtype": str(node.kwargs["dtype"])}

    def plain(self, name: str) -> str:
        """The name of the value as PyTorch has it."""
        if name in self._plain:
            return name
        out = f"{name}.out"
        if out not in self._plain:
            shape = self.shape(name)
            self.nodes.append(Node(out, "layout.leave", (Value(name), shape[1]), {}, shape))
            self._plain.add(out)
        return out

    def place(self, node: Node, target: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...], what: str) -> None:
        """Run `node` in the layout, as `target`."""
        new = Node(node.name, target, args, kwargs, shape, node.layer)
        self.nodes.append(new)
        self._entered[node.name] = new
        self.outcomes[node.name] = what

    def flatten(self, node: Node, source: Node, was: tuple[int, ...]) -> None:
        """(N, H, W, Cs) -> (N, H W Cs), which only linear layers read."""
        flat = (source.shape[0], source.shape[1] * source.shape[2] * source.shape[3])
        self.place(node, "aten.reshape.default", (Value(source.name), list(flat)), {}, flat, "a view; the linear layer takes its order")
        self._flat[node.name] = was

    def leave(self, node: Node, why: str) -> None:
        """Run `node` unchanged, on PyTorch's values."""
        moved = {name: self.plain(name) for name in node.reads}
        self.nodes.append(node.with_reads(moved))
        self.constants |= {name: self.program.constants[name] for name in node.reads if name in self.program.constants}
        self._plain.add(node.name)
        self.outcomes[node.name] = f"left to PyTorch: {why}"

    def constant(self, name: str, value: Tensor) -> Value:
        self.constants[name] = value
        return Value(name)

    def packed(self, node: Node, pack: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]) -> tuple[Value, Value]:
        """The weight and bias of a fused node as its kernel takes them."""
        weight, bias = node.args[1], None if node.args[2] is None else self.program.constants[node.args[2].name]
        w, b = pack(self.program.constants[weight.name], bias)
        return self.constant(f"{weight.name}.{node.name}", w), self.constant(f"{node.name}.bias", b)

    def done(self) -> Program:
        output = self.plain(self.program.output)
        read = {name for node in self.nodes for name in node.reads} | {output}
        nodes = tuple(node for node in self.nodes if node.name in read)  # leaves out a cast that entering the layout does
        return Program(self.program.input, nodes, output, self.constants, self.program.input_shape)


def _computed_weights(laid: _Layout, node: Node) -> str:
    return "" if laid.is_weight(node.args[1]) and laid.is_weight(node.args[2]) else "its weights are computed"


def _conv2d(laid: _Layout, node: Node) -> None:
    from ltcompile.kernels import conv2d, depthwise, grouped

    x, weight, _, residual = node.args
    settings, shape = dict(node.kwargs), laid.program.constants[weight.name].shape
    groups, channels = settings.pop("groups"), shape[0]
    source = laid.entered(x, image=groups == 1)
    if groups == 1:
        kernel, w = "conv2d", laid.packed(node, lambda w, b: conv2d.pack(w, b, w.dtype, source.shape[-1]))
    elif groups == channels and shape[1] == 1 and laid.shape(x.name)[1] == channels:
        kernel, w = "depthwise", laid.packed(node, lambda w, b: depthwise.pack(w, b, w.dtype))
    else:
        kernel, w = "grouped", laid.packed(node, lambda w, b: grouped.pack(w, b, groups, w.dtype))
        settings |= {"groups": groups, "in_channels": laid.shape(x.name)[1]}
    args = (Value(source.name), *w, None if residual is None else Value(laid.entered(residual).name))
    settings |= {"kernel": list(shape[2:]), "channels": channels}
    stride = len(laid.constants[w[1].name])
    outcome = f"our {kernel}, stride {stride} for {channels} channels"
    laid.place(node, f"kernel.{kernel}", args, settings, (node.shape[0], *node.shape[2:], stride), outcome)


def _linear_refusal(laid: _Layout, node: Node) -> str:
    return f"rows of {len(node.shape)} dimensions are cuBLAS's" if len(node.shape) != 2 else _computed_weights(laid, node)


def _linear(laid: _Layout, node: Node) -> None:
    from ltcompile.kernels import linear

    flat_from, source = laid.flat_from(node.args[0]), laid.entered(node.args[0])

    def pack(w: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        if flat_from is not None:  # (K, C H W) -> (K, H W Cs)
            stride = source.shape[1] // (flat_from[1] * flat_from[2])
            w = F.pad(w.view(-1, *flat_from).permute(0, 2, 3, 1), (0, stride - flat_from[0])).reshape(w.shape[0], -1)
        return linear.pack(w, bias, w.dtype)

    w, bias = laid.packed(node, pack)
    settings = {**node.kwargs, "channels": node.shape[1]}
    laid.place(
        node, "kernel.linear", (Value(source.name), w, bias), settings, (node.shape[0], len(laid.constants[bias.name])), "our linear"
    )


def _pooled_head_refusal(laid: _Layout, node: Node) -> str:
    activation = node.kwargs["activation"]
    return f"the kernel's epilogue has no {activation}" if activation != "none" else _computed_weights(laid, node)


def _pooled_head(laid: _Layout, node: Node) -> None:
    from ltcompile.kernels import pooled_head

    w, bias = laid.packed(node, lambda w, b: pooled_head.pack(w, b, w.dtype))
    shape = (node.shape[0], len(laid.constants[bias.name]))
    laid.place(node, "kernel.pooled_head", (Value(laid.entered(node.args[0]).name), w, bias), {}, shape, "our pooled head")


def _max_pool_refusal(laid: _Layout, node: Node) -> str:
    fits = len(node.shape) == 4 and pair(argument(node, 4, [1, 1])) == [1, 1] and not argument(node, 5, False)
    return "" if fits else "our max pool has no dilation and rounds down"


def _max_pool(laid: _Layout, node: Node) -> None:
    kernel, source = pair(node.args[1]), laid.entered(node.args[0])
    settings = {"kernel": kernel, "stride": pair(argument(node, 2, []) or kernel), "padding": pair(argument(node, 3, [0, 0]))}
    shape = (node.shape[0], *node.shape[2:], source.shape[-1])
    laid.place(node, "kernel.maxpool", (Value(source.name),), settings, shape, "our max pool")


def _mean_refusal(laid: _Layout, node: Node) -> str:
    pools = node.target == "aten.adaptive_avg_pool2d.default" and pair(node.args[1]) == [1, 1]
    means = node.target == "aten.mean.dim" and sorted(d % 4 for d in node.args[1]) == [2, 3] and len(node.shape) == 4
    return "" if (pools or means) and laid.is_in(node.args[0]) else "no kernel does it"


def _mean(laid: _Layout, node: Node) -> None:
    """The mean over all places, which stays in the layout because it keeps its dimensions."""
    source = laid.entered(node.args[0])
    shape = (source.shape[0], 1, 1, source.shape[-1])
    laid.place(node, "aten.mean.dim", (Value(source.name), [1, 2], True), {}, shape, "PyTorch's, in our layout")


def _flatten_refusal(laid: _Layout, node: Node) -> str:
    value, users = node.args[0], laid.program.users.get(node.name, [])
    was = laid.shape(value.name) if laid.is_in(value) else ()
    flattens = len(was) == 4 and node.shape == (was[0], was[1] * was[2] * was[3])
    to_linear = users and all(user.target == "fused.linear" and not _linear_refusal(laid, user) for user in users)
    return "" if flattens and to_linear and node.name != laid.program.output else "it is not only flattened for linear layers"


def _flatten(laid: _Layout, node: Node) -> None:
    laid.flatten(node, laid.entered(node.args[0]), laid.shape(node.args[0].name)[1:])


def _pointwise_refusal(laid: _Layout, node: Node) -> str:
    operands = [a for a in node.args if isinstance(a, Value)]
    unary = node.target in _KEEP_ZEROS and len(operands) == 1
    binary = node.target in _BINARY and len(operands) == 2 and not node.kwargs
    if not (unary or binary) or not all(laid.is_in(a) and laid.flat_from(a) is None for a in operands):
        return "no kernel does it"
    first, *rest = (laid.shape(a.name) for a in operands)
    strides = {laid.entered(a).shape[-1] for a in operands}
    same = len(strides) == 1 and all(len(s) == len(first) and s[1] == first[1] for s in rest)
    return "" if same else "its operands differ in their channels"


def _pointwise(laid: _Layout, node: Node) -> None:
    sources = {a.name: laid.entered(a) for a in node.args if isinstance(a, Value)}
    shape = (node.shape[0], *node.shape[2:], next(iter(sources.values())).shape[-1])
    moved = node.with_reads({name: source.name for name, source in sources.items()})
    laid.place(node, node.target, moved.args, dict(moved.kwargs), shape, "PyTorch's, in our layout")


Rule = tuple[Callable[[_Layout, Node], str], Callable[[_Layout, Node], None]]  # the refusal, and the rewrite
_POINTWISE: Rule = (_pointwise_refusal, _pointwise)
_RULES: dict[str, Rule] = {
    "fused.conv2d": (_computed_weights, _conv2d),
    "fused.linear": (_linear_refusal, _linear),
    "fused.pooled_head": (_pooled_head_refusal, _pooled_head),
    "aten.max_pool2d.default": (_max_pool_refusal, _max_pool),
    "aten.adaptive_avg_pool2d.default": (_mean_refusal, _mean),
    "aten.mean.dim": (_mean_refusal, _mean),
    "aten.reshape.default": (_flatten_refusal, _flatten),
}
