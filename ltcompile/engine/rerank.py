"""The fastest configuration of each layer inside the full network.

A layer timed alone reads cold memory; in a network its input was just written, and its launch overlaps the previous one. So the few close
finalists of each layer shape are timed again in the network, one shape after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ltcompile.engine.executable import Choice, specs
from ltcompile.engine.tune import signature
from ltcompile.lower.program import Program

Finalists = Sequence[Choice]  # fastest alone first
InNetwork = Callable[[Mapping[str, Mapping[str, Choice]]], Mapping[str, float]]  # name -> node -> choice; name -> milliseconds
GAIN = 0.005  # the fraction of the network's time that a finalist must save to replace the fastest alone


def rerank(program: Program, finalists: Mapping[str, Finalists], in_network_ms: InNetwork) -> dict[str, Choice]:
    """Node -> its choice. Nodes of one shape share a choice; a finalist that cannot be timed in the network is not chosen."""
    shapes, groups = specs(program), dict[str, list[str]]()
    for node in program.nodes:
        if node.name in finalists:
            groups.setdefault(signature(node, shapes), []).append(node.name)
    choices = {name: found[0] for name, found in finalists.items()}
    for nodes in groups.values():
        candidates = {str(at): choices | dict.fromkeys(nodes, choice) for at, choice in enumerate(finalists[nodes[0]])}
        if len(candidates) > 1:
            ms = in_network_ms(candidates)
            best = min(ms, key=ms.__getitem__, default="0")
            if ms.get(best, 0.0) < (1 - GAIN) * ms.get("0", float("inf")):
                choices = dict(candidates[best])
    return choices
