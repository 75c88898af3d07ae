"""Constants in half precision, images cast on their way in, and the answer back to float32 on its way out.

May it? Every constant stays finite. Biases of fused operations stay in fp32: kernels add them to sums in fp32. What an operation casts to by
itself (a softmax in float32) stays as it is.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ltcompile.lower.program import Node, Program, Value

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BIASED = ("fused.conv2d", "fused.linear", "fused.pooled_head")  # whose third argument is a bias


def refusal(program: Program, precision: str) -> str:
    """Why the program cannot be in this precision, or ""."""
    limit, biases = torch.finfo(DTYPES[precision]).max, _biases(program)
    for name, value in program.constants.items():
        if name not in biases and value.is_floating_point() and value.numel() and not bool((value.abs() <= limit).all()):
            return f"{name} holds values beyond {limit:.0f}, the largest of {precision}"
    return ""


def rewrite(program: Program, precision: str) -> Program:
    """`program` in `precision`: float32 images in, float32 answers out."""
    dtype, biases = DTYPES[precision], _biases(program)
    if dtype == torch.float32:
        return program
    inside, last = f"{program.input}.{precision}", program.by_name[program.output]
    constants = {
        name: value.to(dtype) if value.is_floating_point() and name not in biases else value for name, value in program.constants.items()
    }
    nodes = tuple(node.with_reads({program.input: inside}) for node in program.nodes)
    first = Node(inside, "aten._to_copy.default", (Value(program.input),), {"dtype": str(dtype)}, program.input_shape)
    answer = Node(f"{last.name}.fp32", "aten._to_copy.default", (Value(last.name),), {"dtype": "torch.float32"}, last.shape)
    return replace(program, nodes=(first, *nodes, answer), output=answer.name, constants=constants)


def _biases(program: Program) -> set[str]:
    """The constants that fused operations add, and nothing else reads."""
    found = {node.args[2].name for node in program.nodes if node.target in _BIASED and isinstance(node.args[2], Value)}
    others = {
        name
        for node in program.nodes
        for name in (
            node.reads if node.target not in _BIASED else [a.name for i, a in enumerate(node.args) if i != 2 and isinstance(a, Value)]
        )
    }
    return found & set(program.constants) - others
