"""Keep ONNX Runtime from fusing what it fuses wrongly."""

from __future__ import annotations

from typing import Any


def separate_pads(graph: Any) -> None:
    """Put a reshape that changes nothing between a Pad and a MaxPool after it.

    ONNX Runtime (1.31) makes one node of the two where the Pad's value is zero, and that node pads with minus infinity.
    """
    from onnx import helper, numpy_helper

    values = {i.name: i for i in graph.initializer}
    pads = {
        node.output[0]: float(numpy_helper.to_array(values[node.input[2]]).item()) if node.input[2:] and node.input[2] in values else 0.0
        for node in graph.node
        if node.op_type == "Pad"
    }
    nodes = list(graph.node)
    for node in (n for n in nodes if n.op_type == "MaxPool" and pads.get(n.input[0]) == 0):
        rank = 2 + next(len(a.ints) for a in node.attribute if a.name == "kernel_shape")
        kept, shape = f"{node.output[0]}_padded", f"{node.output[0]}_same_shape"
        graph.initializer.append(helper.make_tensor(shape, 7, [rank], [0] * rank))  # int64; 0: as it is
        nodes.insert(next(i for i, n in enumerate(nodes) if n is node), helper.make_node("Reshape", [node.input[0], shape], [kept], kept))
        node.input[0] = kept
    del graph.node[:]
    graph.node.extend(nodes)
