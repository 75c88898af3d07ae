"""Fake quantization: the rounding of an ONNX file, applied to another graph or removed from its own. Nothing runs here.

    q(t) = s * (clamp(round(t / s) + z, low, high) - z)        s, z and the range of the integers from the file

for every activation that the file quantizes, and for every weight and bias, whose s and z are per filter.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcompile.core.fields import short
from ltcompile.errors import Disagreement

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
INTEGERS = "_quantized"  # the suffix of ONNX Runtime for the integers of a weight
STEPS = 1  # by which integers may differ that two programs have rounded
FLOAT16, FLOAT = 10, 1  # TensorProto's


@dataclass(frozen=True)
class Weight:
    """A weight of an int8 file: its integers, and one scale and zero point, or one for each slice along `axis`."""

    integers: NDArray[Any]
    scale: NDArray[np.float32]
    zero: NDArray[Any]
    axis: int

    def round(self, values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """`values` rounded by this weight's scales, as floats and as integers."""
        shape = [1] * values.ndim
        if self.scale.size > 1:  # the bias of a layer with one filter has one scale, and an axis that it lacks
            shape[self.axis] = self.scale.size
        scale, zero = self.scale.reshape(shape), self.zero.astype(np.int64).reshape(shape)
        limits = np.iinfo(self.integers.dtype)
        integers = np.clip(np.rint(values.astype(np.float64) / scale).astype(np.int64) + zero, limits.min, limits.max)
        return ((integers - zero) * scale).astype(np.float32), integers


def fake_quantized(plain: Any, int8: Any) -> Any:
    """The float graph `plain` with the rounding of the file `int8`: places, scales and zero points are from the file, weights and
    everything else from `plain`.

    Raises:
        Disagreement: the file holds other weights than `plain` rounded, or rounds a value that `plain` does not have.
    """
    from onnx import helper, numpy_helper

    model, weights = copy.deepcopy(plain), weights_of(int8)
    floats = {tensor.name: tensor for tensor in model.graph.initializer}
    if missing := sorted(set(weights) - set(floats)):
        raise Disagreement(f"the int8 file rounds {short(missing[0])}, which the network does not have; shrink the ticket again")
    for name, weight in weights.items():
        values, integers = weight.round(numpy_helper.to_array(floats[name]))
        _check_integers(name, weight, integers)
        floats[name].CopyFrom(numpy_helper.from_array(values, name))
    places = [node for node in int8.graph.node if node.op_type == QUANTIZE]
    held = {tensor.name: tensor for tensor in int8.graph.initializer}
    there = {*(value.name for value in model.graph.input), *(name for node in model.graph.node for name in node.output)}
    for at, node in enumerate(places):
        name = node.input[0].removesuffix("_QuantizeLinear_Input")
        if name not in there:
            raise Disagreement(f"the int8 file rounds {short(name)}, which the network does not compute; shrink the ticket again")
        names = [f"{name}_{part}_{at}" for part in ("scale", "zero", "integers")]
        model.graph.initializer.extend(
            numpy_helper.from_array(numpy_helper.to_array(held[source]), target)
            for source, target in zip(node.input[1:], names, strict=False)
        )
        rounding = [helper.make_node(QUANTIZE, ["", *names[:2]], names[2:]), helper.make_node(DEQUANTIZE, [names[2], *names[:2]], [""])]
        _insert(model.graph, name, rounding)
    return model


def unrounded(model: Any) -> Any:
    """A copy of an ONNX model with its weights in float32 and without any rounding to int8 or half precision."""
    from onnx import numpy_helper

    found = copy.deepcopy(model)
    for tensor in found.graph.initializer:
        if tensor.data_type == FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    quantized = {node.output[0] for node in found.graph.node if node.op_type == QUANTIZE}
    for node in found.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT16:
                attribute.i = FLOAT
        if node.op_type == QUANTIZE or (node.op_type == DEQUANTIZE and node.input[0] in quantized):
            _becomes_identity(node)
    return found


def precision_of(model: Any) -> str:
    """The precision that the graph of an ONNX model rounds to: "int8", "fp16" or "fp32"."""
    if any(node.op_type == QUANTIZE for node in model.graph.node):
        return "int8"
    return "fp16" if any(tensor.data_type == FLOAT16 for tensor in model.graph.initializer) else "fp32"


def in_half(model: Any) -> Any:
    """A float32 graph with the floating-point output of every node rounded to float16 and back."""
    import onnx
    from onnx import helper

    found = copy.deepcopy(model)
    del found.graph.value_info[:]  # the types before `unrounded`
    known = onnx.shape_inference.infer_shapes(found).graph
    floats = {value.name for value in (*known.value_info, *known.output) if value.type.tensor_type.elem_type == FLOAT}
    for name in [name for node in found.graph.node if node.op_type != "Identity" for name in node.output if name in floats]:
        half = f"{name}_half"
        _insert(found.graph, name, [helper.make_node("Cast", [""], [half], to=FLOAT16), helper.make_node("Cast", [half], [""], to=FLOAT)])
    return found


def weights_of(int8: Any) -> dict[str, Weight]:
    """The weights and biases of an int8 file, by their names in the float file."""
    from onnx import numpy_helper

    held = {tensor.name: tensor for tensor in int8.graph.initializer}
    found = {}
    for node in int8.graph.node:
        if node.op_type == DEQUANTIZE and node.input[0] in held:
            integers, scale, zero = (numpy_helper.to_array(held[name]) for name in node.input)
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            found[node.input[0].removesuffix(INTEGERS)] = Weight(integers, scale, zero, axis)
    return found


def _check_integers(name: str, weight: Weight, integers: NDArray[np.int64]) -> None:
    """Raises Disagreement where a file's integers are not those of the network's weight, rounded by their scale."""
    if weight.integers.shape != integers.shape:
        raise Disagreement(f"the file's {short(name)} has the shape {weight.integers.shape}, the network's {integers.shape}")
    off = np.abs(weight.integers.astype(np.int64) - integers)
    if off.max(initial=0) > STEPS:
        where = np.unravel_index(int(off.argmax()), off.shape)
        raise Disagreement(
            f"the file's weight {short(name)} is not the network's: {off.max()} steps apart at {list(map(int, where))}, where rounding "
            f"allows {STEPS}; shrink the ticket again"
        )


def _insert(graph: Any, name: str, rounding: list[Any]) -> None:
    """Insert two nodes between value `name` and all its readers, including the graph's output."""
    first, last = rounding
    produced = next((at for at, node in enumerate(graph.node) if name in node.output), None)
    if produced is None:  # the graph's input
        exact, rounded, at = name, f"{name}_rounded", 0
        for node in graph.node:
            _rename(node.input, name, rounded)
    else:
        exact, rounded, at = f"{name}_exact", name, produced + 1
        _rename(graph.node[produced].output, name, exact)
    first.input[0], last.output[0] = exact, rounded
    graph.node.insert(at, last)
    graph.node.insert(at, first)


def _rename(names: Any, old: str, new: str) -> None:
    for at, name in enumerate(names):
        if name == old:
            names[at] = new


def _becomes_identity(node: Any) -> None:
    node.op_type = "Identity"
    del node.input[1:], node.attribute[:]
