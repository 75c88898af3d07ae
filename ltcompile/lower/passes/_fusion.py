"""The protocol of fusing passes, and what they share: which activations an epilogue has, and how arguments are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ltcompile.lower.program import Node, Program

_ACTIVATIONS = {f"aten.{name}.default": name for name in ("relu", "relu6", "silu", "hardswish", "sigmoid", "hardsigmoid")}


@dataclass(frozen=True)
class Fusion:
    """Nodes that follow each other, the node that replaces the last of them, and the outcome of the first."""

    chain: Sequence[Node]
    new: Node
    outcome: str


class Fusing(Protocol):
    """A pass: its preconditions apart from its rewrite."""

    REFUSED: str  # what becomes of a refused node, in front of the reason

    def applies(self, program: Program, node: Node) -> bool:
        """Whether the pass is for chains that begin with `node`."""

    def refusal(self, program: Program, node: Node) -> str:
        """Why the chain may not be fused, or ""."""

    def fuse(self, program: Program, node: Node) -> Fusion:
        """The fusion of a chain that is not refused."""


def fuse_all(rules: Fusing, program: Program) -> tuple[Program, dict[str, str]]:
    """`program` with all chains fused that `rules` allow, and the outcome of each node that they apply to."""
    outcomes: dict[str, str] = {}
    for node in program.nodes:
        if node.name in outcomes or not rules.applies(program, node):
            continue
        if reason := rules.refusal(program, node):
            outcomes[node.name] = f"{rules.REFUSED}: {reason}"
            continue
        fusion = rules.fuse(program, node)
        program = program.fused(tuple(fusion.chain), fusion.new)
        first, *rest = fusion.chain
        outcomes |= {first.name: fusion.outcome, **{other.name: f"fused into {first.layer or first.name}" for other in rest}}
    return program, outcomes


def activation_of(node: Node | None) -> str | None:
    """The name of the activation that `node` is, if a kernel's epilogue has it."""
    if node is None:
        return None
    if node.target == "aten.hardtanh.default" and list(node.args[1:]) == [0.0, 6.0]:
        return "relu6"
    if node.target == "aten.gelu.default" and node.kwargs.get("approximate", "none") == "none":
        return "gelu"
    return _ACTIVATIONS.get(node.target)


def nothing_more(program: Program, node: Node) -> str:
    """Why nothing is fused behind `node`."""
    if node.name == program.output:
        return "nothing more, for it is the output"
    users = program.users.get(node.name, [])
    if len(users) != 1:
        return f"nothing more, for its output is used by {len(users)} operations"
    return f"nothing more, for no epilogue does {users[0].target}"


def argument(node: Node, at: int, default: Any) -> Any:
    """The argument at a position; exporting leaves defaults out."""
    return node.args[at] if len(node.args) > at else default


def pair(value: Any) -> list[int]:
    """Two numbers of one number, of a list of one, or of a list of two."""
    values = value if isinstance(value, list) else [value]
    return values * 2 if len(values) == 1 else values
