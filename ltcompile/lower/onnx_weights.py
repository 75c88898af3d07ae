"""The ONNX graph of a cut network from that of the dense one, in milliseconds; exporting takes seconds.

Initializers carry the names of the network's parameters. Those of int8 files have a suffix, and keep their first values. Precondition: apart
from one axis of a reshape, nothing else in the graph counts channels. Otherwise ONNX Runtime refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

SUFFIXES = ("_quantized", "_scale", "_zero_point", "_quantized_scale", "_quantized_zero_point")


def with_weights(model: Any, before: Mapping[str, Tensor], after: Mapping[str, Tensor], axes: Mapping[str, int] = {}) -> Any:
    """A copy of the ONNX `model` of a network with the state dict `before`, with the weights and shapes of `after`.

    `axes` are those of `channel_axes`; those of reshapes to (batch, C) are known without.
    """
    import onnx
    from onnx import numpy_helper

    small = onnx.ModelProto()
    small.CopyFrom(model)
    graph = small.graph
    del graph.value_info[:]
    shapes = {name: (tuple(before[name].shape), tuple(value.shape)) for name, value in after.items() if name in before}
    for initializer in graph.initializer:
        base, suffix = _base(initializer.name, shapes)
        if not base or (shapes[base][0] == shapes[base][1] and suffix):
            continue
        if not suffix:
            initializer.CopyFrom(numpy_helper.from_array(after[base].detach().cpu().numpy(), initializer.name))
            continue
        old, new = shapes[base]
        value = numpy_helper.to_array(initializer)
        if value.shape == old or value.shape == old[:1]:
            part = value[tuple(slice(0, n) for n in new[: value.ndim])]
            initializer.CopyFrom(numpy_helper.from_array(part.copy(), initializer.name))
    _regroup(graph, shapes)
    _leave_open(graph, axes)
    return small


def channel_axes(dense: Any, small: Any) -> dict[str, int] | None:
    """Reshape of the ONNX model `dense` -> the axis of its target that counts channels, found in the model of the network at other widths.

    None where two axes of a target differ, or the models have other operations.
    """
    if [node.op_type for node in dense.graph.node] != [node.op_type for node in small.graph.node]:
        return None
    found = {}
    for (node, target), (_, other) in zip(_targets(dense.graph), _targets(small.graph), strict=True):
        differ = [axis for axis, (a, b) in enumerate(zip(target, other, strict=True)) if a != b]
        if len(differ) > 1:
            return None
        if differ:
            found[node.name] = differ[0]
    return found


@torch.no_grad()
def made_distinct(network: nn.Module) -> nn.Module:
    """`network` with noise in its constant tensors, in place: of equal ones, as norms begin with, a file holds one, which has one width."""
    rng = torch.Generator().manual_seed(0)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() and tensor.numel() > 1 and tensor.min() == tensor.max():
            tensor.add_(0.01 * torch.rand(tensor.shape, generator=rng, dtype=tensor.dtype))
    return network


def _base(name: str, known: Mapping[str, Any]) -> tuple[str, str]:
    """The parameter that an initializer belongs to, and the suffix of its name; "" where there is none."""
    if name in known:
        return name, ""
    return next(((name.removesuffix(s), s) for s in SUFFIXES if name.endswith(s) and name.removesuffix(s) in known), ("", ""))


def _regroup(graph: Any, shapes: Mapping[str, Any]) -> None:
    """Reduce the groups of grouped convolutions in proportion to their filters."""
    for node in graph.node:
        for attribute in (a for a in node.attribute if a.name == "group" and a.i > 1):
            base = next((b for b in (_base(n.removesuffix("_DequantizeLinear_Output"), shapes)[0] for n in node.input[1:2]) if b), "")
            if base:
                old, new = shapes[base]
                attribute.i = attribute.i * new[0] // old[0]


def _targets(graph: Any) -> list[tuple[Any, list[int]]]:
    """The reshapes whose target is constant, with it."""
    from onnx import numpy_helper

    initializers = {i.name: i for i in graph.initializer}
    reshapes = (node for node in graph.node if node.op_type == "Reshape" and node.input[1] in initializers)
    return [(node, numpy_helper.to_array(initializers[node.input[1]]).tolist()) for node in reshapes]


def _leave_open(graph: Any, axes: Mapping[str, int]) -> None:
    """Replace the targets of reshapes by (0, ..., -1, ...): the batch as it comes, and what is left at `axes`, or at the second of two."""
    import numpy as np
    from onnx import numpy_helper

    for node, target in _targets(graph):
        if axis := axes.get(node.name, 1 if len(target) == 2 else 0):
            target[0], target[axis] = 0, -1
            graph.initializer.append(numpy_helper.from_array(np.array(target), f"{node.name}_target"))
            node.input[1] = f"{node.name}_target"
            others = [a for a in node.attribute if a.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(others)
