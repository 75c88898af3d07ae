"""Rewrites of a program, in the order in which they are made; one file each.

A pass says its rule at the top, asks `refusal` before it rewrites, and tells of each node that it looked at what became of it.
"""

from __future__ import annotations

from collections.abc import Callable

from ltcompile.lower.passes import fuse_conv, fuse_head, fuse_linear
from ltcompile.lower.program import Program

Told = dict[str, str]
PASSES: dict[str, Callable[[Program], tuple[Program, Told]]] = {
    "fuse_head": fuse_head.rewrite,
    "fuse_conv": fuse_conv.rewrite,
    "fuse_linear": fuse_linear.rewrite,
}
