"""linear, then an activation, as one operation: y = act(x w^T + b).

May it? The linear layer's output goes to the activation alone. Without one, it becomes the same operation, whose kernel adds the bias.
"""

from __future__ import annotations

from ltcompile.lower.passes._chain import activation_of, describe, why_not
from ltcompile.lower.program import Node, Program


def rewrite(program: Program) -> tuple[Program, dict[str, str]]:
    """`program` with its linear layers fused, and what became of each node that was looked at."""
    told: dict[str, str] = {}
    for node in program.nodes:
        if node.target != "aten.linear.default":
            continue
        following = program.only_user(node.name)
        activation = activation_of(following)
        chain = (node, following) if following is not None and activation else (node,)
        bias = node.args[2] if len(node.args) > 2 else None
        settings = {"activation": activation or "none"}
        new = Node(chain[-1].name, "fused.linear", (node.args[0], node.args[1], bias), settings, chain[-1].shape, node.layer)
        program = program.fused(chain, new)
        describe(told, chain, f"fused linear + {activation}" if activation else f"fused linear; nothing more, for {why_not(program, new)}")
    return program, told
