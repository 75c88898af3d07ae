"""Programs as JSON: plain values, checked when they are read, so that a file can hold a program. Constants are kept apart, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ltcompile.errors import InvalidFile
from ltcompile.lower import operations
from ltcompile.lower.program import Node, Program, Value, mapped


def to_json(program: Program) -> dict[str, Any]:
    """Everything but the constants."""
    nodes = [
        {
            "name": n.name,
            "target": n.target,
            "args": mapped(n.args, _written),
            "kwargs": mapped(dict(n.kwargs), _written),
            "shape": list(n.shape),
            "layer": n.layer,
        }
        for n in program.nodes
    ]
    return {"input": program.input, "input_shape": list(program.input_shape), "nodes": nodes, "output": program.output}


def from_json(value: Any, constants: Mapping[str, Tensor]) -> Program:
    """The program of `to_json`, with `constants`.

    Raises:
        InvalidFile: it is not a program, it calls an unknown operation, or a node reads a value that is not computed before it.
    """
    try:
        nodes = tuple(_node(node) for node in value["nodes"])
        name, output, shape = str(value["input"]), str(value["output"]), tuple(int(n) for n in value["input_shape"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidFile(f"this is not a program: {error!r}") from error
    known = {name, *constants}
    for node in nodes:
        if missing := [read for read in node.reads if read not in known]:
            raise InvalidFile(f"this is not a program: {node.name} reads {missing[0]!r}, which is not computed before it")
        if node.name in known:
            raise InvalidFile(f"this is not a program: {node.name!r} is computed twice")
        known.add(node.name)
    if output not in known:
        raise InvalidFile(f"this is not a program: its output {output!r} is not computed")
    used = {read for node in nodes for read in node.reads}
    return Program(name, nodes, output, {key: tensor for key, tensor in constants.items() if key in used}, shape)


def _node(value: Mapping[str, Any]) -> Node:
    target = str(value["target"])
    if not operations.known(target):
        raise InvalidFile(f"this program calls {target!r}, which programs do not have; was it made by a newer ltcompile?")
    args, kwargs = _read(value["args"]), {str(k): _read(v) for k, v in value["kwargs"].items()}
    return Node(str(value["name"]), target, tuple(args), kwargs, tuple(int(n) for n in value["shape"]), str(value["layer"]))


def _written(value: Any) -> Any:
    """A value as JSON, which has neither references nor infinities."""
    if isinstance(value, Value):
        return {"value": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(v) for v in value]
    if isinstance(value, dict):
        return Value(str(value["value"])) if "value" in value else float(value["float"])
    return value
