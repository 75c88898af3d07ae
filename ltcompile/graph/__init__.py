"""The surgeon: find what hangs together in a network, and remove, mask or restore channels of it."""

from ltcompile.graph.count import Size, size
from ltcompile.graph.emptied import Emptied, emptied
from ltcompile.graph.inputs import Example
from ltcompile.graph.probe import on_meta
from ltcompile.graph.proof import agreeing, disagreements
from ltcompile.graph.squeeze import squeeze
from ltcompile.graph.surgeon import cut, embed, mask, zeros
from ltcompile.graph.trace import trace

__all__ = [
    "Emptied",
    "Example",
    "Size",
    "agreeing",
    "cut",
    "disagreements",
    "embed",
    "emptied",
    "mask",
    "on_meta",
    "size",
    "squeeze",
    "trace",
    "zeros",
]
