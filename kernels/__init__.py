"""Triton kernels for small dense networks, one kernel a file. NHWC, channel stride padded, padded lanes exactly zero.

A file `x.py` offers the operator `x`, usable in any network, and its parts:

    Arguments                    the record of the operator's arguments: `empty()` is the output, not filled, `default()` and `space()` are
                                 configurations
    pack(...)                    weights of a torch layer -> the tensors that the operator takes, once
    reference(arguments)         the output in torch operations; float64 in, float64 out
    prepare(y, arguments, config=...)  -> Call: checked, configured, ready to `launch` repeatedly
    x(...)                       `torch.ops.ltcompile.x`: the Triton kernel on a GPU, `reference` on a CPU, traceable everywhere

Two ways avoid the time between launches of calls that follow each other in a stream: `dependent(call)` starts while the previous one ends,
and `fuse(calls)` is all of them in one launch.

Importing this package imports neither torch nor Triton; `load` does.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ltcompile import registry

if TYPE_CHECKING:
    from ltcompile.kernels._config import PERSISTENT_WARPS, Config
    from ltcompile.kernels._convolution import ACTIVATIONS, KEEPS_ZERO
    from ltcompile.kernels._launch import Call, dependent, interpreted, launch
    from ltcompile.kernels._layout import IMAGE_STRIDE, nchw, nhwc, padded
    from ltcompile.kernels._persistent import fuse

__all__ = ["ACTIVATIONS", "IMAGE_STRIDE", "KEEPS_ZERO", "PERSISTENT_WARPS", "Call", "Config"]
__all__ += ["dependent", "fuse", "interpreted", "launch", "load", "names", "nchw", "nhwc", "padded"]

_HOMES = dict.fromkeys(("ACTIVATIONS", "KEEPS_ZERO"), "_convolution") | {"fuse": "_persistent"}
_HOMES |= dict.fromkeys(("Config", "PERSISTENT_WARPS"), "_config")
_HOMES |= dict.fromkeys(("IMAGE_STRIDE", "nchw", "nhwc", "padded"), "_layout")
_HOMES |= dict.fromkeys(("Call", "dependent", "interpreted", "launch"), "_launch")


def names() -> list[str]:
    """The names of all kernels."""
    return list(registry.modules(__name__))


def load(name: str) -> ModuleType:
    """The kernel `name`; importing it registers its operator. Raises UnknownName."""
    return registry.load(__name__, "kernel", name)


def __getattr__(name: str) -> Any:
    """Import a name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
