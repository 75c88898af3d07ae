"""conv2d, then + residual, then an activation, then 2x2 max pool, as one operation.

    y = pool(act(conv(x, w) + b + r))

Preconditions: only the next step reads each step's output; the convolution has dilation 1 and padding in numbers; the residual has the
convolution's shape; the pool is 2x2 with stride 2 on even sides. The fused operation replaces the last step, so that the residual is
computed before it.
"""

from __future__ import annotations

from ltcompile.lower.passes._fusion import Fusion, activation_of, argument, nothing_more, pair
from ltcompile.lower.program import Node, Program, Value

REFUSED = "left to PyTorch"


def applies(program: Program, node: Node) -> bool:
    """Whether `node` is a convolution of images that no other has taken."""
    return node.target.startswith("aten.conv2d.") and node.name in program.by_name


def refusal(program: Program, node: Node) -> str:
    """Why this convolution may not be fused, or ""."""
    if node.target != "aten.conv2d.default":
        return "its padding is not in numbers"
    dilation = argument(node, 5, [1, 1])
    return "" if list(dilation) in ([1, 1], [1]) else f"it has dilation {dilation}"


def fuse(program: Program, node: Node) -> Fusion:
    """The convolution and as many of the following steps as an epilogue computes."""
    chain, residual, activation, pool = [node], None, "none", False
    parts: list[str] = []
    following = program.only_user(node.name)
    if following is not None and (other := _residual(program, node, following)):
        chain, residual, parts = [*chain, following], Value(other), [*parts, "residual"]
        following = program.only_user(following.name)
    if following is not None and (name := activation_of(following)):
        chain, activation, parts = [*chain, following], name, [*parts, name]
        following = program.only_user(following.name)
    if following is not None and _is_pool(following, program.by_name[chain[-1].name]):
        chain, pool, parts = [*chain, following], True, [*parts, "2x2 max pool"]
    settings = {
        "stride": pair(argument(node, 3, [1, 1])),
        "padding": pair(argument(node, 4, [0, 0])),
        "groups": argument(node, 6, 1),
        "activation": activation,
        "pool": pool,
    }
    last, args = chain[-1], (node.args[0], node.args[1], argument(node, 2, None), residual)
    new = Node(last.name, "fused.conv2d", args, settings, last.shape, node.layer)
    rest = "".join(f" + {part}" for part in parts) or f"; {nothing_more(program, new)}"
    return Fusion(chain, new, f"fused conv2d{rest}")


def _residual(program: Program, conv: Node, add: Node) -> str | None:
    """The other operand of `add`, of the same shape."""
    if add.target != "aten.add.Tensor" or add.kwargs or not all(isinstance(a, Value) for a in add.args):
        return None
    others = [a.name for a in add.args if a.name != conv.name]
    if len(others) != 1 or others[0] in program.constants:
        return None
    known = program.by_name.get(others[0])
    return others[0] if known is not None and known.shape == conv.shape else None


def _is_pool(node: Node, before: Node) -> bool:
    if node.target != "aten.max_pool2d.default" or any(side % 2 for side in before.shape[2:]):
        return False
    kernel, stride = pair(node.args[1]), pair(argument(node, 2, []) or node.args[1])
    plain = pair(argument(node, 3, [0, 0])) == [0, 0] and pair(argument(node, 4, [1, 1])) == [1, 1] and not argument(node, 5, False)
    return kernel == stride == [2, 2] and plain
