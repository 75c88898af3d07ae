"""Rewrites of a program, one file each, in the order in which they run.

A pass states its rule at the top, and keeps its preconditions (`refusal`) apart from its rewrite. It returns the outcome of each node that it
applies to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ltcompile.lower.passes import fuse_conv, fuse_head, fuse_linear
from ltcompile.lower.passes._fusion import fuse_all
from ltcompile.lower.program import Program

PASSES: dict[str, Callable[[Program], tuple[Program, dict[str, str]]]] = {
    "fuse_head": partial(fuse_all, fuse_head),
    "fuse_conv": partial(fuse_all, fuse_conv),
    "fuse_linear": partial(fuse_all, fuse_linear),
}
