"""conv2d, then + residual, then an activation, then 2x2 max pool, as one operation.

    y = pool(act(conv(x, w) + b + r))

May it? Each step's output goes to the next step alone; the convolution has dilation 1 and padding in numbers; the residual has the
convolution's shape; the pool is 2x2 with stride 2 on even sides. The fused operation stands where its last step stood, so that the
residual is there in time.
"""

from __future__ import annotations

from ltcompile.lower.passes._chain import activation_of, argument, describe, pair, why_not
from ltcompile.lower.program import Node, Program, Value


def rewrite(program: Program) -> tuple[Program, dict[str, str]]:
    """`program` with its convolutions fused, and what became of each node that was looked at."""
    told: dict[str, str] = {}
    for node in program.nodes:
        if not node.target.startswith("aten.conv2d.") or node.name not in program.by_name or node.name in told:
            continue
        if reason := refusal(node):
            told[node.name] = f"left to PyTorch: {reason}"
            continue
        chain, fused, parts = _fused(program, node)
        program = program.fused(chain, fused)
        rest = f"; nothing more, for {why_not(program, fused)}" if not parts else ""
        describe(told, chain, f"fused conv2d{''.join(f' + {p}' for p in parts)}{rest}")
    return program, told


def refusal(node: Node) -> str:
    """Why this convolution may not be fused, or ""."""
    if node.target != "aten.conv2d.default":
        return "its padding is not in numbers"
    dilation = argument(node, 5, [1, 1])
    return "" if list(dilation) in ([1, 1], [1]) else f"it has dilation {dilation}"


def _fused(program: Program, conv: Node) -> tuple[tuple[Node, ...], Node, list[str]]:
    chain, residual, activation, pool = [conv], None, "none", False
    parts: list[str] = []
    following = program.only_user(conv.name)
    if following is not None and (other := _residual(program, conv, following)):
        chain, residual, parts = [*chain, following], Value(other), [*parts, "residual"]
        following = program.only_user(following.name)
    if following is not None and (name := activation_of(following)):
        chain, activation, parts = [*chain, following], name, [*parts, name]
        following = program.only_user(following.name)
    if following is not None and _is_pool(following, program.by_name[chain[-1].name]):
        chain, pool, parts = [*chain, following], True, [*parts, "2x2 max pool"]
    settings = {
        "stride": pair(argument(conv, 3, [1, 1])),
        "padding": pair(argument(conv, 4, [0, 0])),
        "groups": argument(conv, 6, 1),
        "activation": activation,
        "pool": pool,
    }
    last = chain[-1]
    args = (conv.args[0], conv.args[1], argument(conv, 2, None), residual)
    return tuple(chain), Node(last.name, "fused.conv2d", args, settings, last.shape, conv.layer), parts


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
