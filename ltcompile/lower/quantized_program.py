"""From an int8 ONNX file, with its QuantizeLinear and DequantizeLinear pairs, to a program on integers (`integer`) for one image.

A float value between such a pair is a `Pending` one: it is not computed before it is known whether integers or numbers are wanted of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ltcompile.errors import Unavailable
from ltcompile.lower._quantized_moves import MOVES, moved
from ltcompile.lower._quantized_operations import OPERATIONS
from ltcompile.lower._quantized_values import Builder, Constant, Held, Known
from ltcompile.lower.fake_quantize import DEQUANTIZE, QUANTIZE
from ltcompile.lower.program import Node, Program, Value

_RULES = {**dict.fromkeys(MOVES, moved), **OPERATIONS}


def integer_program(model: Any, shape: Sequence[int]) -> Program:
    """The program of an int8 ONNX model for one image of `shape` (1, ...), with sums and pools fused into the convolutions before them.

    Raises:
        Unavailable: it has an operation that programs on integers do not have; the message names it.
    """
    from onnx import numpy_helper

    graph = model.graph
    builder = Builder(shape, {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer})
    inputs = [value.name for value in graph.input if value.name not in builder.known]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise Unavailable("it has several inputs or outputs")
    builder.known[inputs[0]] = Held(builder.input)
    for node in graph.node:
        try:
            builder.known |= _outputs(builder, node)
        except (Unavailable, RuntimeError, KeyError, ValueError, TypeError, IndexError) as error:
            raise Unavailable(f"{node.name or node.output[0]} ({node.op_type}): {error}") from error
    output = builder.real(graph.output[0].name)
    return _fused(Program(builder.input, tuple(builder.nodes), output, builder.constants, builder.shape))


def _outputs(builder: Builder, node: Any) -> dict[str, Known]:
    """What is known of a node's outputs, by their names."""
    from onnx import helper

    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    first = node.output[0]
    if node.op_type == QUANTIZE:
        return {first: builder.quantized(node.input[0], *_scale(builder, node))}
    if node.op_type == DEQUANTIZE:
        return {first: _dequantized(builder, node, settings)}
    if node.op_type == "Shape":
        sizes = builder.shape_of(node.input[0])[settings.get("start", 0) : settings.get("end")]
        return {first: Constant(np.array(sizes, np.int64))}
    if all(isinstance(builder.known[name], Constant) for name in node.input):
        return _computed(builder, node)
    if node.op_type not in _RULES:
        raise Unavailable("the compiler does not have it")
    return {first: _RULES[node.op_type](builder, node, settings)}


def _computed(builder: Builder, node: Any) -> dict[str, Known]:
    """The outputs of a node whose inputs are constants."""
    from onnx.reference import ReferenceEvaluator

    found: Any = ReferenceEvaluator(node).run(None, {name: builder.array(name) for name in node.input if name})
    return {name: Constant(np.asarray(value)) for name, value in zip(node.output, found, strict=True)}


def _scale(builder: Builder, node: Any) -> tuple[float, int]:
    scale, zero = map(builder.array, node.input[1:])
    if scale.size != 1 or zero.dtype != np.uint8:
        raise Unavailable("its activations are not unsigned integers with one scale")
    return float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])


def _dequantized(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    known = builder.known[node.input[0]]
    if isinstance(known, Held):
        return Held(known.name, *_scale(builder, node))
    assert isinstance(known, Constant)
    scale, zero = map(builder.array, node.input[1:])
    axis = settings.get("axis", 1) % known.values.ndim if scale.size > 1 else 0
    across = [-1 if at == axis else 1 for at in range(known.values.ndim)] if scale.size > 1 else []
    values = ((known.values.astype(np.int64) - zero.astype(np.int64).reshape(across)) * scale.reshape(across)).astype(np.float32)
    if zero.any() or not known.values.ndim:
        return Constant(values)
    return Constant(values, known.values, scale, axis)


def _fused(program: Program) -> Program:
    for node in program.nodes:
        if node.target != "int8.conv2d" or node.name not in program.by_name:
            continue
        conv = program.by_name[node.name]
        after = program.only_user(conv.name)
        if after is not None and after.target == "int8.add" and conv.shape == after.shape:
            first = after.args[0] == Value(conv.name)
            other = after.args[1] if first else after.args[0]
            zeros, factors = (pair if first else pair[::-1] for pair in (after.kwargs["zeros"], after.kwargs["factors"]))
            if other != Value(conv.name) and other.name in program.by_name and program.by_name[other.name].shape == conv.shape:
                settings = {**conv.kwargs, "added": [*zeros, *factors, *after.kwargs["output"]]}
                fused = Node(after.name, conv.target, (*conv.args[:4], other), settings, conv.shape)
                program, conv = program.fused((conv, after), fused), fused
                after = program.only_user(conv.name)
        plain = after is not None and after.target == "int8.max_pool2d" and after.args[1:] == ([2, 2], [2, 2], [0, 0])
        if after is not None and plain and not any(side % 2 for side in conv.shape[2:]) and conv.kwargs["groups"] == 1:
            fused = Node(after.name, conv.target, conv.args, {**conv.kwargs, "pool": True}, after.shape)
            program = program.fused((conv, after), fused)
    used, nodes = {program.output}, list[Node]()
    for node in reversed(program.nodes):
        if node.name in used:
            used.update(node.reads)
            nodes.insert(0, node)
    return replace(program, nodes=tuple(nodes), constants={name: v for name, v in program.constants.items() if name in used})
