"""Which operation of an ONNX file, and of what a runtime made of it, belongs to which layer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from ltcompile.runtimes._ort import PRODUCTS

DECORATION = re.compile(r"^fused |(_nchwc|_nhwc|_quant|_token_\d+|/\w+)$")
Names = dict[str, set[str]]  # name of an operation or value -> the layers that it may stand for


def names(model: Any, layers: Iterable[str]) -> Names:
    """For the onnx `model`: the operation that multiplies by a layer's weights and the value it makes stand for that layer; everything
    after it, up to the next such operation, for the layers that it comes from."""
    known = set(layers)
    found: defaultdict[str, set[str]] = defaultdict(set)
    weights: dict[str, str] = {f"{name}.weight": name for name in known}
    for node in model.graph.node:
        layer = next((weights[w] for i in node.input for w in (_parameter(i),) if w in weights), None)
        here = {layer} if layer and node.op_type in PRODUCTS else set().union(*(found[i] for i in node.input))
        if node.op_type == "DequantizeLinear" and layer:
            weights[node.output[0]] = layer  # the weights of an int8 file, on their way in
        for name in (node.name, *node.output):
            found[name] = here
    return dict(found)


def _parameter(name: str) -> str:
    """The parameter that an initializer of an int8 file is made of."""
    return name.removesuffix("_quantized")


def assign(events: Sequence[tuple[str, bool]], known: Names) -> list[str | None]:
    """For the operations that a runtime recorded, in order (name, whether it is a product): the layer that each is, None for all others.

    Fusing renames operations after the last value that they make, so that a name may stand for several layers: those that are
    named clearly come first.
    """
    candidates = [set(known.get(_plain(name, known), ())) if product else set() for name, product in events]
    result: list[str | None] = [None] * len(events)
    while True:
        clear = next((i for i, c in enumerate(candidates) if len(c) == 1 and result[i] is None), None)
        if clear is None:
            return result
        (layer,) = candidates[clear]
        result[clear] = layer
        for c in candidates:
            c.discard(layer)


def _plain(name: str, known: Names) -> str:
    """The name that an operation had in the file, before a runtime decorated it."""
    while name not in known and (shorter := DECORATION.sub("", name)) != name:
        name = shorter
    return name


def shares(events: Sequence[tuple[str | None, float]]) -> dict[str, float]:
    """Layer -> time: each gets its own operation's and that of all that follow, up to the next layer; the first, what comes before it."""
    found: dict[str, float] = defaultdict(float)
    waiting, current = 0.0, None
    for layer, time in events:
        current = layer or current
        if current is None:
            waiting += time
        else:
            found[current] += time + waiting
            waiting = 0.0
    return dict(found)
