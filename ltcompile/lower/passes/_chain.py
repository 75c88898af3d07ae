"""What passes share: reading arguments, and what follows a layer and can be done on its way out."""

from __future__ import annotations

from typing import Any

from ltcompile.lower.program import Node, Program

_ACTIVATIONS = {
    "aten.relu.default": "relu",
    "aten.relu6.default": "relu6",
    "aten.silu.default": "silu",
    "aten.hardswish.default": "hardswish",
    "aten.sigmoid.default": "sigmoid",
    "aten.hardsigmoid.default": "hardsigmoid",
}


def activation_of(node: Node | None) -> str | None:
    """The name of the activation that `node` is, if a kernel's epilogue has it."""
    if node is None:
        return None
    if node.target == "aten.hardtanh.default" and list(node.args[1:]) == [0.0, 6.0]:
        return "relu6"
    if node.target == "aten.gelu.default" and node.kwargs.get("approximate", "none") == "none":
        return "gelu"
    return _ACTIVATIONS.get(node.target)


def describe(told: dict[str, str], chain: tuple[Node, ...], what: str) -> None:
    """Tell that all of `chain` became its last node."""
    first = chain[0].layer or chain[0].name
    told[chain[0].name] = what
    told.update({node.name: f"fused into {first}" for node in chain[1:]})


def why_not(program: Program, node: Node) -> str:
    """Why nothing is fused behind `node`."""
    if node.name == program.output:
        return "it is the output"
    users = program.users.get(node.name, [])
    if len(users) != 1:
        return f"its output is used by {len(users)} operations"
    return f"no epilogue does {users[0].target}"


def argument(node: Node, at: int, default: Any) -> Any:
    """The argument at a position, which exporting leaves out where it is the default."""
    return node.args[at] if len(node.args) > at else default


def pair(value: Any) -> list[int]:
    """One number or a list of one stands for both sides."""
    values = value if isinstance(value, list) else [value]
    return values * 2 if len(values) == 1 else values
