"""Activations in the kernels' layout (NHWC, channel stride a multiple of 8, zeros behind the channels), weights packed once.

May it? A fused operation goes to a kernel where there is one for its shape; what follows value by value and keeps zeros zero stays in
the layout; a flatten in front of linear layers becomes a view, and their weights take its order. Everything else is left to PyTorch,
behind a conversion that is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltcompile.kernels import IMAGE_STRIDE, padded
from ltcompile.lower.passes._chain import argument, pair
from ltcompile.lower.program import Node, Program, Value

_KEEP_ZEROS = frozenset(
    f"aten.{name}.default"
    for name in ["relu", "relu6", "hardtanh", "silu", "hardswish", "gelu", "tanh", "mish", "leaky_relu", "elu", "neg"]
)
_BINARY = frozenset({"aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"})


def rewrite(program: Program) -> tuple[Program, dict[str, str]]:
    """`program` with its fused operations on kernels, and what became of each node."""
    placing = _Placing(program)
    for node in program.nodes:
        if node.target == "fused.linear" and (refusal := linear_refusal(node, program)):
            placing.leave(node, refusal)
        else:
            _PLACES.get(node.target, _by_value)(placing, node)
    return placing.done(), placing.told


def linear_refusal(node: Node, program: Program) -> str:
    """Why this linear layer may not go to the kernel, or ""."""
    if len(node.shape) != 2:
        return f"rows of {len(node.shape)} dimensions are cuBLAS's"
    return "" if _is_weight(node.args[1], program) and _is_weight(node.args[2], program) else "its weights are computed"


def conv_refusal(node: Node, program: Program) -> str:
    """Why this convolution may not go to a kernel, or ""."""
    return "" if _is_weight(node.args[1], program) and _is_weight(node.args[2], program) else "its weights are computed"


def _is_weight(value: Any, program: Program) -> bool:
    return value is None or (isinstance(value, Value) and value.name in program.constants)


class _Placing:
    """The program that is being made: which values are in the layout, and which are as PyTorch has them."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.told: dict[str, str] = {}
        self._entered: dict[str, Node] = {}  # value -> the node that has it in the layout
        self._flat: dict[str, tuple[int, ...]] = {}  # flattened value in the layout -> the (C, H, W) that it was
        self._plain = {program.input, *program.constants}

    def dtype(self) -> torch.dtype:
        """That of the weights; biases stay in fp32 whatever the precision."""
        floating = {c.dtype for c in self.program.constants.values() if c.is_floating_point()}
        return next(iter(floating - {torch.float32}), torch.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """As PyTorch has it."""
        if name in self.program.by_name:
            return self.program.by_name[name].shape
        return self.program.input_shape if name == self.program.input else tuple(self.program.constants[name].shape)

    def is_in(self, value: Any) -> bool:
        """Whether the value lies in the layout already."""
        return isinstance(value, Value) and value.name in self._entered

    def flat_from(self, value: Value) -> tuple[int, ...] | None:
        return self._flat.get(value.name)

    def entered(self, value: Value, image: bool = False) -> Node:
        """The node that has `value` in the layout; `image`: with a stride of 4 where that holds it."""
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
        """Images are cast while they are laid out: what to read, and the type to make of it."""
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
        """`node` runs in the layout, as `target`."""
        new = Node(node.name, target, args, kwargs, shape, node.layer)
        self.nodes.append(new)
        self._entered[node.name] = new
        self.told[node.name] = what

    def flatten(self, node: Node, source: Node, was: tuple[int, ...]) -> None:
        """(N, H, W, Cs) -> (N, H W Cs), which only linear layers read."""
        flat = (source.shape[0], source.shape[1] * source.shape[2] * source.shape[3])
        self.place(node, "aten.reshape.default", (Value(source.name), list(flat)), {}, flat, "a view; the linear layer takes its order")
        self._flat[node.name] = was

    def leave(self, node: Node, why: str) -> None:
        """`node` runs as it is, on values as PyTorch has them."""
        moved = {name: self.plain(name) for name in node.reads}
        self.nodes.append(node.with_reads(moved))
        self.constants |= {name: self.program.constants[name] for name in node.reads if name in self.program.constants}
        self._plain.add(node.name)
        self.told[node.name] = f"left to PyTorch: {why}"

    def constant(self, name: str, value: Tensor) -> Value:
        self.constants[name] = value
        return Value(name)

    def weight(self, value: Value | None) -> Tensor | None:
        return None if value is None else self.program.constants[value.name]

    def done(self) -> Program:
        output = self.plain(self.program.output)
        read = {name for node in self.nodes for name in node.reads} | {output}
        nodes = tuple(node for node in self.nodes if node.name in read)  # a cast that laying out does by the way
        return Program(self.program.input, nodes, output, self.constants, self.program.input_shape)


def _conv2d(placing: _Placing, node: Node) -> None:
    if refusal := conv_refusal(node, placing.program):
        placing.leave(node, refusal)
        return
    from ltcompile.kernels import conv2d, depthwise, grouped

    x, weight, bias, residual = node.args
    w, b = placing.weight(weight), placing.weight(bias)
    assert w is not None
    how, channels = dict(node.kwargs), w.shape[0]
    groups = how.pop("groups")
    source = placing.entered(x, image=groups == 1)
    if groups == 1:
        kernel, packed = "conv2d", conv2d.pack(w, b, w.dtype, source.shape[-1])
    elif groups == channels == w.shape[0] and w.shape[1] == 1 and placing.shape(x.name)[1] == channels:
        kernel, packed = "depthwise", depthwise.pack(w, b, w.dtype)
    else:
        kernel, packed = "grouped", grouped.pack(w, b, groups, w.dtype)
        how |= {"groups": groups, "in_channels": placing.shape(x.name)[1]}
    other = None if residual is None else Value(placing.entered(residual).name)
    args = (
        Value(source.name),
        placing.constant(f"{weight.name}.{node.name}", packed[0]),
        placing.constant(f"{node.name}.bias", packed[1]),
        other,
    )
    n, _, p, q = node.shape
    how |= {"kernel": list(w.shape[2:]), "channels": channels}
    placing.place(
        node,
        f"kernel.{kernel}",
        args,
        how,
        (n, p, q, packed[1].shape[0]),
        f"our {kernel}, stride {packed[1].shape[0]} for {channels} channels",
    )


def _linear(placing: _Placing, node: Node) -> None:
    from ltcompile.kernels import linear

    x, weight, bias = node.args
    w, b = placing.weight(weight), placing.weight(bias)
    assert w is not None
    was = placing.flat_from(x)
    source = placing.entered(x)
    if was is not None:  # (K, C H W) -> (K, H W Cs)
        stride = source.shape[1] // (was[1] * was[2])
        w = F.pad(w.view(-1, *was).permute(0, 2, 3, 1), (0, stride - was[0])).reshape(w.shape[0], -1)
    packed = linear.pack(w, b, w.dtype)
    args = (Value(source.name), placing.constant(f"{weight.name}.{node.name}", packed[0]), placing.constant(f"{node.name}.bias", packed[1]))
    how = {**node.kwargs, "channels": w.shape[0]}
    placing.place(node, "kernel.linear", args, how, (node.shape[0], packed[1].shape[0]), "our linear")


def _pooled_head(placing: _Placing, node: Node) -> None:
    from ltcompile.kernels import pooled_head

    x, weight, bias = node.args
    if node.kwargs["activation"] != "none":
        placing.leave(node, f"the kernel's epilogue has no {node.kwargs['activation']}")
        return
    if not (_is_weight(weight, placing.program) and _is_weight(bias, placing.program)):
        placing.leave(node, "its weights are computed")
        return
    w = placing.weight(weight)
    assert w is not None
    packed = pooled_head.pack(w, placing.weight(bias), w.dtype)
    source = placing.entered(x)
    args = (Value(source.name), placing.constant(f"{weight.name}.{node.name}", packed[0]), placing.constant(f"{node.name}.bias", packed[1]))
    placing.place(node, "kernel.pooled_head", args, {}, (node.shape[0], packed[1].shape[0]), "our pooled head")


def _max_pool(placing: _Placing, node: Node) -> None:
    kernel = pair(node.args[1])
    if len(node.shape) != 4 or pair(argument(node, 4, [1, 1])) != [1, 1] or argument(node, 5, False):
        placing.leave(node, "our max pool has no dilation and rounds down")
        return
    source = placing.entered(node.args[0])
    how = {"kernel": kernel, "stride": pair(argument(node, 2, []) or kernel), "padding": pair(argument(node, 3, [0, 0]))}
    n, _, p, q = node.shape
    placing.place(node, "kernel.maxpool", (Value(source.name),), how, (n, p, q, source.shape[-1]), "our max pool")


def _mean(placing: _Placing, node: Node) -> None:
    """The mean over all places, which stays in the layout where it keeps its dimensions."""
    pools = node.target == "aten.adaptive_avg_pool2d.default" and pair(node.args[1]) == [1, 1]
    means = node.target == "aten.mean.dim" and sorted(d % 4 for d in node.args[1]) == [2, 3] and len(node.shape) == 4
    if not (pools or means) or not placing.is_in(node.args[0]):
        placing.leave(node, "no kernel does it")
        return
    source = placing.entered(node.args[0])
    shape = (source.shape[0], 1, 1, source.shape[-1])
    placing.place(node, "aten.mean.dim", (Value(source.name), [1, 2], True), {}, shape, "PyTorch's, in our layout")


def _flatten(placing: _Placing, node: Node) -> None:
    value, users = node.args[0], placing.program.users.get(node.name, [])
    was = placing.shape(value.name) if placing.is_in(value) else ()
    to_linear = all(user.target == "fused.linear" and not linear_refusal(user, placing.program) for user in users)
    if len(was) == 4 and node.shape == (was[0], was[1] * was[2] * was[3]) and users and to_linear and node.name != placing.program.output:
        placing.flatten(node, placing.entered(value), was[1:])
    else:
        placing.leave(node, "it is not only flattened for linear layers")


def _by_value(placing: _Placing, node: Node) -> None:
    """What computes value by value stays in the layout, if all that it reads is there and zeros stay zeros."""
    operands = [a for a in node.args if isinstance(a, Value)]
    unary = node.target in _KEEP_ZEROS and len(operands) == 1
    binary = node.target in _BINARY and len(operands) == 2 and not node.kwargs
    if not (unary or binary) or not all(placing.is_in(a) and placing.flat_from(a) is None for a in operands):
        placing.leave(node, "no kernel does it")
        return
    sources = {a.name: placing.entered(a) for a in operands}
    first, *rest = (placing.shape(a.name) for a in operands)
    if any(len(s) != len(first) or s[1] != first[1] for s in rest) or len({s.shape[-1] for s in sources.values()}) != 1:
        placing.leave(node, "its operands differ in their channels")
        return
    stride = next(iter(sources.values())).shape[-1]
    shape = (node.shape[0], *node.shape[2:], stride)
    moved = node.with_reads({name: source.name for name, source in sources.items()})
    placing.place(node, node.target, moved.args, dict(moved.kwargs), shape, "PyTorch's, in our layout")


_PLACES: dict[str, Callable[[_Placing, Node], None]] = {
    "fused.conv2d": _conv2d,
    "fused.linear": _linear,
    "fused.pooled_head": _pooled_head,
    "aten.max_pool2d.default": _max_pool,
    "aten.adaptive_avg_pool2d.default": _mean,
    "aten.mean.dim": _mean,
    "aten.reshape.default": _flatten,
}
