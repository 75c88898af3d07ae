"""Constants in half precision, images cast on their way in, and the answer back to float32 on its way out.

May it? Every constant stays finite. What an operation casts to by itself (a softmax in float32) stays as it is.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ltcompile.lower.program import Node, Program, Value

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def refusal(program: Program, precision: str) -> str:
    """Why the program cannot be in this precision, or ""."""
    limit = torch.finfo(DTYPES[precision]).max
    for name, value in program.constants.items():
        if value.is_floating_point() and value.numel() and not bool((value.abs() <= limit).all()):
            return f"{name} holds values beyond {limit:.0f}, the largest of {precision}"
    return ""


def rewrite(program: Program, precision: str) -> Program:
    """`program` in `precision`: float32 images in, float32 answers out."""
    dtype = DTYPES[precision]
    if dtype == torch.float32:
        return program
    inside, last = f"{program.input}.{precision}", program.by_name[program.output]
    constants = {name: value.to(dtype) if value.is_floating_point() else value for name, value in program.constants.items()}
    nodes = tuple(node.with_reads({program.input: inside}) for node in program.nodes)
    first = Node(inside, "aten._to_copy.default", (Value(program.input),), {"dtype": str(dtype)}, program.input_shape)
    answer = Node(f"{last.name}.fp32", "aten._to_copy.default", (Value(last.name),), {"dtype": "torch.float32"}, last.shape)
    return replace(program, nodes=(first, *nodes, answer), output=answer.name, constants=constants)
