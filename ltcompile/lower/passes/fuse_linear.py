"""linear, then an activation, as one operation: y = act(x w^T + b).

Precondition: only the activation reads the linear layer's output. Without an activation the operation is the same, and its kernel adds the bias.
"""

from __future__ import annotations

from ltcompile.lower.passes._fusion import Fusion, activation_of, argument, nothing_more
from ltcompile.lower.program import Node, Program

REFUSED = "left to PyTorch"


def applies(program: Program, node: Node) -> bool:
    """Whether `node` is a linear layer."""
    return node.target == "aten.linear.default"


def refusal(program: Program, node: Node) -> str:
    """Every linear layer may be fused."""
    return ""


def fuse(program: Program, node: Node) -> Fusion:
    """The layer and the activation after it, if nothing else reads its output."""
    following = program.only_user(node.name)
    activation = activation_of(following)
    chain = [node, following] if following is not None and activation else [node]
    args = (node.args[0], node.args[1], argument(node, 2, None))
    new = Node(chain[-1].name, "fused.linear", args, {"activation": activation or "none"}, chain[-1].shape, node.layer)
    return Fusion(chain, new, f"fused linear + {activation}" if activation else f"fused linear; {nothing_more(program, new)}")
