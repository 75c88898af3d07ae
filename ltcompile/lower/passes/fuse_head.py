"""Global average pool, flatten, linear, then an activation, as one operation: y = act(mean over places of x, times w^T, + b).

Preconditions: the pool leaves one place, the flatten one row an image, and only the next step reads each step's output. Dropout does nothing
in a deployed network, and exporting has removed it.
"""

from __future__ import annotations

from ltcompile.lower.passes._fusion import Fusion, activation_of, argument
from ltcompile.lower.program import Node, Program, Value

REFUSED = "kept"
_RESHAPES = ("aten.reshape.default", "aten.squeeze.dims", "aten.squeeze.dim", "aten.clone.default")


def applies(program: Program, node: Node) -> bool:
    """Whether `node` is the mean over all places of images (N, C, H, W)."""
    source = program.by_name.get(node.reads[0]) if node.reads else None
    if source is None or len(source.shape) != 4:
        return False
    if node.target == "aten.adaptive_avg_pool2d.default":
        return list(node.args[1]) in ([1, 1], [1])
    return node.target == "aten.mean.dim" and sorted(d % 4 for d in node.args[1]) == [2, 3]


def refusal(program: Program, node: Node) -> str:
    """Why the pool does not lead to a linear layer, or ""."""
    chain = _chain(program, node)
    last, following = chain[-1], program.only_user(chain[-1].name)
    if following is None:
        return "its output is used elsewhere too"
    if following.target != "aten.linear.default":
        return f"{following.target} follows"
    reads_rows = following.args[0] == Value(last.name) and last.shape == node.shape[:2]
    return "" if reads_rows and isinstance(following.args[1], Value) else "what follows does not read a row an image"


def fuse(program: Program, node: Node) -> Fusion:
    """The pool, the flatten, the linear layer, and an activation if only that reads its output."""
    chain = _chain(program, node)
    linear = program.only_user(chain[-1].name)
    assert linear is not None
    following = program.only_user(linear.name)
    activation = activation_of(following)
    chain += [linear, following] if following is not None and activation else [linear]
    args = (node.args[0], linear.args[1], argument(linear, 2, None))
    new = Node(chain[-1].name, "fused.pooled_head", args, {"activation": activation or "none"}, linear.shape, linear.layer)
    return Fusion(chain, new, f"fused global average pool + linear{f' + {activation}' if activation else ''}")


def _chain(program: Program, pool: Node) -> list[Node]:
    """The pool and what only changes the shape of its output."""
    chain, shapes = [pool], (pool.shape[:2], (*pool.shape[:2], 1, 1))
    while (following := program.only_user(chain[-1].name)) is not None and following.target in _RESHAPES and following.shape in shapes:
        chain.append(following)
    return chain
