"""Leave the additions of zeros out of an exported program: what is left of removed residual branches (see `graph.removed`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

# What gives zeros where its first argument is zero, or, for products, any of them.
_MOVES = ("view", "reshape", "_unsafe_view", "permute", "transpose", "unsqueeze", "squeeze", "expand", "roll", "slice", "flatten")
_KEEP = frozenset((*_MOVES, "clone", "contiguous", "dropout", "mul", "relu", "_to_copy", "alias", "detach"))


def without_zero_branches(program: ExportedProgram) -> ExportedProgram:
    """`program` without in-place operations, and without the additions whose one side is zeros of the other's shape and type."""
    program = program.run_decompositions({})
    zeros: set[fx.Node] = set()
    for node in list(program.graph.nodes):
        if node.op != "call_function":
            continue
        sources = [arg for arg in node.args if isinstance(arg, fx.Node)]
        if _gives_zeros(node) or (_name(node) in _KEEP and any(s in zeros for s in (sources if _name(node) == "mul" else sources[:1]))):
            zeros.add(node)
        elif _name(node) == "add" and len(sources) == 2 and not node.kwargs:
            other = next((b for a, b in (sources, sources[::-1]) if a in zeros and _same(b, node)), None)
            if other is not None:
                node.replace_all_uses_with(other)
                program.graph_signature.replace_all_uses(node.name, other.name)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _gives_zeros(node: fx.Node) -> bool:
    """Whether `node` makes zeros of whatever it gets, as what stands for a removed branch does."""
    return _name(node) in ("zeros_like", "new_zeros") or (_name(node) == "threshold" and tuple(node.args[1:]) == (math.inf, 0.0))


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0] if isinstance(node.target, torch._ops.OpOverload) else ""


def _same(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta.get("val"), other.meta.get("val")
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype
