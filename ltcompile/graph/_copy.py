"""Copies of networks."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def copied(model: Module, memo: dict[int, Any] | None = None) -> Module:
    """A deep copy of `model`, in half the time: most of a module is empty dictionaries of hooks, which copy.deepcopy takes apart.

    `memo` maps the id of an object to what stands for it in the copy.
    """
    empty = {id(v): type(v)() for m in model.modules() for v in vars(m).values() if type(v) in (dict, OrderedDict) and not v}
    return copy.deepcopy(model, empty | (memo or {}))
