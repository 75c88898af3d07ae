"""Triton kernels for small dense networks, one kernel a file. NHWC, channel stride padded, padded lanes exactly zero.

A file `x.py` offers the operator `x`, usable in any network, and what it is made of:

    pack(...)                    weights of a torch layer -> the tensors that the operator takes, once
    x(...)                       `torch.ops.ltcompile.x`: the Triton kernel on a GPU, `reference` on a CPU, traceable everywhere
    empty(...)                   the output, not filled: its shape is the operator's
    reference(...)               the same in torch operations; float64 in, float64 out
    prepare(y, ..., config=...)  -> Call: checked, configured, ready for `launch` (again and again) or `compile_ahead`
    CASES, TOL, sample(...)      what the tests walk over; a case's `lanes` are the output channels that are not padding

Two ways past the time between launches, for calls that follow each other in a stream: `dependent(call)` starts while the one before it
ends, and `fuse(calls)` is all of them in one launch.

Importing this package imports neither torch nor Triton; `load` does.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ltcompile import registry

if TYPE_CHECKING:
    from ltcompile.kernels._config import Config
    from ltcompile.kernels._epilogue import ACTIVATIONS
    from ltcompile.kernels._launch import Call, Compiled, compile_ahead, dependent, interpreted, launch
    from ltcompile.kernels._layout import nchw, nhwc, padded
    from ltcompile.kernels.persistent import fuse

__all__ = [
    "ACTIVATIONS",
    "Call",
    "Compiled",
    "Config",
    "compile_ahead",
    "dependent",
    "fuse",
    "interpreted",
    "launch",
    "load",
    "names",
    "nchw",
    "nhwc",
    "padded",
]
_HOMES = {
    "ACTIVATIONS": "_epilogue",
    "Call": "_launch",
    "Compiled": "_launch",
    "Config": "_config",
    "compile_ahead": "_launch",
    "dependent": "_launch",
    "fuse": "persistent",
    "interpreted": "_launch",
    "launch": "_launch",
    "nchw": "_layout",
    "nhwc": "_layout",
    "padded": "_layout",
}


def names() -> list[str]:
    """The kernels there are."""
    return list(registry.modules(__name__))


def load(name: str) -> ModuleType:
    """The kernel `name`; importing it registers its operator. Raises UnknownName."""
    return registry.load(__name__, "kernel", name)


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
