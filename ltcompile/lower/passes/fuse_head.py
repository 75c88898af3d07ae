"""Global average pool, flatten, linear, then an activation, as one operation: y = act(mean over places of x, times w^T, + b).

May it? The pool leaves one place, the flatten one row an image, and each step's output goes to the next alone. Dropout does nothing
in a deployed network, and exporting has removed it.
"""

from __future__ import annotations

from ltcompile.lower.passes._chain import activation_of, describe
from ltcompile.lower.program import Node, Program, Value


def rewrite(program: Program) -> tuple[Program, dict[str, str]]:
    """`program` with its pooled heads fused, and what became of each node that was looked at."""
    told: dict[str, str] = {}
    for node in program.nodes:
        if not _pools_all(program, node):
            continue
        chain = _chain(program, node)
        if isinstance(chain, str):
            told[node.name] = f"kept: {chain}"
            continue
        linear, following = chain[-1], program.only_user(chain[-1].name)
        activation = activation_of(following)
        chain = (*chain, following) if following is not None and activation else chain
        bias = linear.args[2] if len(linear.args) > 2 else None
        settings = {"activation": activation or "none"}
        new = Node(chain[-1].name, "fused.pooled_head", (node.args[0], linear.args[1], bias), settings, linear.shape, linear.layer)
        program = program.fused(chain, new)
        describe(told, chain, f"fused global average pool + linear{f' + {activation}' if activation else ''}")
    return program, told


def _pools_all(program: Program, node: Node) -> bool:
    """Whether `node` is the mean over all places of images (N, C, H, W)."""
    source = program.by_name.get(node.reads[0]) if node.reads else None
    if source is None or len(source.shape) != 4:
        return False
    if node.target == "aten.adaptive_avg_pool2d.default":
        return list(node.args[1]) in ([1, 1], [1])
    return node.target == "aten.mean.dim" and sorted(d % 4 for d in node.args[1]) == [2, 3]


def _chain(program: Program, pool: Node) -> tuple[Node, ...] | str:
    """The pool and all behind it up to the linear layer; or why there is none."""
    chain, batch, channels = [pool], pool.shape[0], pool.shape[1]
    while True:
        following = program.only_user(chain[-1].name)
        if following is None:
            return "its output is used elsewhere too"
        if following.target == "aten.linear.default":
            weight = following.args[1]
            reads_rows = following.args[0] == Value(chain[-1].name) and chain[-1].shape == (batch, channels)
            return (*chain, following) if reads_rows and isinstance(weight, Value) else "what follows does not read a row an image"
        if following.shape not in ((batch, channels), (batch, channels, 1, 1)) or following.target not in _RESHAPES:
            return f"{following.target} follows"
        chain.append(following)


_RESHAPES = (
    "aten.reshape.default",
    "aten.squeeze.dims",
    "aten.squeeze.dim",
    "aten.clone.default",
)
