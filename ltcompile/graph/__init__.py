"""The surgeon: find what hangs together in a network, and remove, mask or restore channels of it."""

from ltcompile.graph.count import Size, size
from ltcompile.graph.dead_channels import Eliminated, eliminate_dead_channels
from ltcompile.graph.inputs import Example
from ltcompile.graph.probe import on_meta
from ltcompile.graph.proof import agreeing, disagreements
from ltcompile.graph.squeeze import squeeze
from ltcompile.graph.surgeon import cut, dropped_weights, embed, mask
from ltcompile.graph.trace import trace

__all__ = [
    "Eliminated",
    "Example",
    "Size",
    "agreeing",
    "cut",
    "disagreements",
    "dropped_weights",
    "eliminate_dead_channels",
    "embed",
    "mask",
    "on_meta",
    "size",
    "squeeze",
    "trace",
]
