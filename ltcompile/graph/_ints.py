"""Integers that remember where they came from: a module's attribute, or the width of a tensor's channels.

A network's code turns widths and attributes into the sizes of reshapes and splits. Following them says which attributes must
shrink with which channels, and which widths must shrink together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from torch import nn


class Source(NamedTuple):
    """The attribute `name` of the module `layer`; its element `item` where it is a list or tuple."""

    layer: str
    name: str
    item: int | None = None


class Int(int):
    """An int with its sources: the attribute that it is, and the labels of the channels that it was counted or computed from."""

    attribute: Source | None
    widths: tuple[np.ndarray, ...]

    def __new__(cls, value: int, attribute: Source | None = None, widths: tuple[np.ndarray, ...] = ()) -> Int:
        self = super().__new__(cls, value)
        self.attribute, self.widths = attribute, widths
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def widths_of(value: Any) -> tuple[np.ndarray, ...]:
    """The labels of the channels that `value` was computed from."""
    return value.widths if isinstance(value, Int) else ()


def attribute_of(value: Any) -> Source | None:
    """The attribute that `value` is, unchanged."""
    return value.attribute if isinstance(value, Int) else None


def _operator(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def calculate(self: Int, *others: Any) -> Any:
        result = plain(self, *others)
        if type(result) is not int:
            return result
        return Int(result, None, sum((widths_of(o) for o in others), self.widths))

    return calculate


for _name in ("add", "sub", "mul", "floordiv", "mod", "radd", "rsub", "rmul", "rfloordiv", "rmod", "neg"):
    setattr(Int, f"__{_name}__", _operator(f"__{_name}__"))


@contextmanager
def attributes_followed(model: nn.Module) -> Iterator[None]:
    """Within it, the integer attributes of `model`'s own modules (not torch's) are Ints; `model` is a copy made for tracing."""
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        for name, value in list(vars(module).items()):
            if name.startswith("_"):
                continue
            if _counts(value):
                vars(module)[name] = Int(value, Source(path, name))
            elif type(value) in (list, tuple) and value and all(_counts(v) for v in value):
                vars(module)[name] = type(value)(Int(v, Source(path, name, i)) for i, v in enumerate(value))
    yield


def _counts(value: Any) -> bool:
    return type(value) is int and value > 0
