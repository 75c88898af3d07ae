"""What int8 leaves in float in a network that ranks what it finds: the arithmetic of scores and places.

256 numbers place a box no better than by a 256th of the range of all boxes, before deltas are added; and scores that int8 makes equal are
ranked by chance. Products, which take the time, and what lies between them are quantised as in other networks.
"""

from __future__ import annotations

from typing import Any

from ltcompile.lower.quantize import PRODUCTS

RANKINGS = ("TopK", "NonMaxSuppression")
PLACES = {  # operation -> its inputs that say where the others are read or written
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "GridSample": (1,),
    "RoiAlign": (1, 2),
    "ScatterElements": (1,),
    "ScatterND": (1,),
}


def arithmetic_of_places(model: Any) -> tuple[str, ...]:
    """The names of the nodes of an ONNX graph that lead to no product but through a ranking or a place; () where nothing is ranked."""
    nodes = model.graph.node
    if not any(node.op_type in RANKINGS for node in nodes):
        return ()
    read: set[str] = set()  # values that reach a product
    found = []
    for node in reversed(nodes):
        if node.op_type not in PRODUCTS and read.isdisjoint(node.output):
            found.append(node.name)
        elif node.op_type not in RANKINGS:
            read |= {name for at, name in enumerate(node.input) if at not in PLACES.get(node.op_type, ())}
    return tuple(reversed(found))
