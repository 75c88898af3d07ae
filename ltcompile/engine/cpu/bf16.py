"""A fp32 program for one image with its dense layers in bf16: their inputs and weights are rounded, sums stay in fp32.

Values that only such layers read are stored in bf16; others are rounded where such a layer reads them. Depthwise and grouped layers, and
all other operations stay in fp32. Direct products of pairs take the place of Winograd's, which they outrun: they are half as
many, against 1 / 2.25, and nothing is transformed.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ltcompile.lower.program import Node, Program, Value

DENSE = ("fused.conv2d", "fused.linear")
BF16, FP32 = str(torch.bfloat16), str(torch.float32)


def in_bf16(program: Program) -> Program:
    """The same network; weights in bf16 are new constants."""
    dense = {node.name for node in program.nodes if node.target in DENSE and _able(program, node)}
    halves = {
        node.name
        for node in program.nodes
        if node.target in DENSE and node.name != program.output and dense.issuperset(user.name for user in program.users.get(node.name, []))
    }
    nodes, constants, casts = list[Node](), dict(program.constants), dict[str, Value]()

    def rounded(value: Value) -> Value:
        if value.name in halves:
            return value
        if value.name not in casts:
            casts[value.name] = Value(f"{value.name}.bf16")
            shape = program.by_name[value.name].shape if value.name in program.by_name else program.input_shape
            nodes.append(Node(casts[value.name].name, "aten._to_copy.default", (value,), {"dtype": BF16}, shape))
        return casts[value.name]

    for node in program.nodes:
        args, kind, settings = list(node.args), node.target, dict(node.kwargs)
        if node.name in dense:
            name = f"{args[1].name}.bf16"
            constants[name] = constants[args[1].name].to(torch.bfloat16)
            args[:2] = rounded(args[0]), Value(name)
        if node.name in dense | halves:
            kind, settings["dtype"] = kind.replace("fused", "mixed"), BF16 if node.name in halves else FP32
        nodes.append(replace(node, target=kind, args=tuple(args), kwargs=settings))
    used = {name for node in nodes for name in node.reads}
    return replace(program, nodes=tuple(nodes), constants={name: value for name, value in constants.items() if name in used})


def _able(program: Program, node: Node) -> bool:
    """Whether it has constant weights, and no groups."""
    return all(value is None or value.name in program.constants for value in node.args[1:3]) and node.kwargs.get("groups", 1) == 1
