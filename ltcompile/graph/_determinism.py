"""Runs without chance: random draws become constants, so that networks of different widths see the same ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_DROPS = {aten.native_dropout.default}
_ONES = {aten.bernoulli_.float, aten.bernoulli_.Tensor, aten.bernoulli.default, aten.bernoulli.p}
_KEPT = 0.5  # what every other draw gives


class Constant(TorchDispatchMode):
    """Dropout keeps everything, and noise has one value. `coarse` is whether anything was computed in less than float64."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            out = func(*args, **(kwargs or {}))
            self.coarse |= isinstance(out, Tensor) and out.is_floating_point() and out.dtype != torch.float64 and out.dim() > 1
            return out
        return _constant(func, args, kwargs or {})


def _constant(func: Any, args: Any, kwargs: Any) -> Any:
    if func in _DROPS:
        return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
    if "rrelu" in func.overloadpacket.__name__:  # slopes between two bounds
        given = [a.default_value if a.has_default_value() else None for a in func._schema.arguments]
        values = dict(zip((a.name for a in func._schema.arguments), [*args, *given[len(args) :]], strict=True)) | kwargs
        return func(**values | dict.fromkeys(("lower", "upper"), (values["lower"] + values["upper"]) / 2))
    if func.overloadpacket is aten.randperm:
        return torch.arange(args[0], **{k: v for k, v in kwargs.items() if k != "generator"})
    out = func(*args, **kwargs)
    if isinstance(out, Tensor):
        if out.is_floating_point():
            out.fill_(1.0 if func in _ONES else _KEPT)
        elif func.overloadpacket is not aten.randint:
            out.fill_(1 if func in _ONES else 0)
    return out


@contextmanager
def constant_draws() -> Iterator[Constant]:
    """Within it, draws are constants, and Python's, numpy's and torch's generators start from one seed; afterwards they are as before."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_available() else ()):
        random.seed(0)
        np.random.seed(0)  # networks of others draw from the global generator
        torch.manual_seed(0)
        try:
            with Constant() as mode:
                yield mode
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
