"""Which configuration of each layer is fastest inside the whole network.

A layer that is timed alone finds its memory cold; in a network its input was just written, and its launch overlaps the one before. So the
finalists of each layer shape, few and close, are timed again in the network, one shape after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ltcompile.engine.executable import Choice, specs
from ltcompile.engine.tune import signature
from ltcompile.lower.program import Program

Finalists = Sequence[Choice]  # fastest alone first
InNetwork = Callable[[Mapping[str, Mapping[str, Choice]]], Mapping[str, float]]  # name -> node -> choice; name -> milliseconds
GAIN = 0.005  # a finalist replaces the fastest alone if it saves more of the network's time than this


def rerank(program: Program, finalists: Mapping[str, Finalists], in_network_ms: InNetwork) -> dict[str, Choice]:
    """Node -> its choice. Nodes of one shape keep one choice; what cannot be timed in the network is not chosen."""
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
