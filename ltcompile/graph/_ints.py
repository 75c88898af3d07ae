"""Integers that remember where they came from: a module's attribute, or the width of a tensor's channels.

A network's code turns widths and attributes into the sizes of reshapes and splits. Following them says which attributes must
shrink with which channels, and which widths must shrink together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import nn

from ltcompile.graph.layers import is_settings, storage

if TYPE_CHECKING:
    from ltcompile.graph._labels import Labels

_LABELS: ContextVar[Labels | None] = ContextVar("labels", default=None)  # of the tracing that runs
COMPUTED = "the network computes with how many there are"


class Source(NamedTuple):
    """The attribute `name` of the module `layer`, or "settings.name" of an object there; its element `item` where it is a list or tuple."""

    layer: str
    name: str
    item: int | None = None


class Int(int):
    """An int with its sources: the attribute that it is, and the labels of the channels that it was counted or computed from.

    `quotient` are the dividend and the divisor where it is a quotient: the size of a head, which stays while heads go.
    """

    attribute: Source | None
    widths: tuple[np.ndarray, ...]
    quotient: tuple[Int, Int] | None

    def __new__(
        cls,
        value: int,
        attribute: Source | None = None,
        widths: tuple[np.ndarray, ...] = (),
        quotient: tuple[Int, Int] | None = None,
    ) -> Int:
        self = super().__new__(cls, value)
        self.attribute, self.widths, self.quotient = attribute, widths, quotient
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def widths_of(value: Any) -> tuple[np.ndarray, ...]:
    """The labels of the channels that `value` was computed from."""
    return value.widths if isinstance(value, Int) else ()


def attribute_of(value: Any) -> Source | None:
    """The attribute that `value` is, unchanged."""
    return value.attribute if isinstance(value, Int) else None


def compute_with(value: Any) -> None:
    """`value` enters a computation: what it counts must stay, or the cut network would compute something else."""
    labels = _LABELS.get()
    if labels is None or not isinstance(value, Int):
        return
    if value.quotient is not None:
        labels.quotients.append(value.quotient)
        return
    _stay(labels, value)


def _operator(name: str) -> Callable[..., Any]:
    """An operation that makes a size of sizes; with a float, it is a computation."""
    plain = getattr(int, name)

    def calculate(self: Int, *others: Any) -> Any:
        result = plain(self, *others)
        if any(isinstance(o, float) for o in others):
            compute_with(self)
        if type(result) is not int:
            return result
        quotient = (self, others[0]) if name == "__floordiv__" and isinstance(others[0], Int) else None
        return Int(result, None, sum((widths_of(o) for o in others), self.widths), quotient)

    return calculate


def _computation(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def calculate(self: Int, *others: Any) -> Any:
        if name == "__truediv__" and isinstance(others[0], Int):
            compute_with(self // others[0])
        else:
            for value in (self, *others):
                compute_with(value)
        return plain(self, *others)

    return calculate


def settle_quotients(labels: Labels) -> None:
    """Quotients that the network computes with stay while both sides keep their ratio; else what they count must stay."""
    for sides in labels.quotients:
        counted = [_counted(side) if side.attribute is None else labels.attributes.get(side.attribute) for side in sides]
        if counted[0] is not None and counted[1] is not None:
            labels.tie(counted[0], counted[1])
            continue
        for side in sides:
            _stay(labels, side)


def _stay(labels: Labels, value: Int) -> None:
    for atoms in value.widths:
        labels.pin(atoms, COMPUTED)
    if value.attribute is not None:
        labels.fixed_attributes.setdefault(value.attribute, COMPUTED)


def _comparison(name: str) -> Callable[..., Any]:
    """Equal widths stay equal, and an attribute that equals a width counts it; a width that equals a plain number must stay."""
    plain = getattr(int, name)

    def compare(self: Int, other: Any) -> Any:
        labels = _LABELS.get()
        if labels is not None and isinstance(other, int) and int.__eq__(self, other):
            _equal(labels, self, other)
        return plain(self, other)

    return compare


def _equal(labels: Labels, one: Int, other: int) -> None:
    counted = [width for value in (one, other) if (width := _counted(value)) is not None]
    source = attribute_of(one) or attribute_of(other)
    if len(counted) == 2:
        labels.tie(*counted)
    elif counted and source is not None:
        labels.follow(source, counted[0])
    elif counted and not widths_of(other):
        labels.pin(counted[0], "the network's code compares their number with a fixed one")


def _counted(value: int) -> np.ndarray | None:
    """The channels whose number `value` is, without any arithmetic."""
    widths = widths_of(value)
    return widths[0] if len(widths) == 1 and len(widths[0]) == int(value) else None


for _name in ("add", "sub", "mul", "floordiv", "mod", "radd", "rsub", "rmul", "rfloordiv", "rmod", "neg"):
    setattr(Int, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("pow", "rpow", "truediv", "rtruediv", "float"):
    setattr(Int, f"__{_name}__", _computation(f"__{_name}__"))
for _name in ("eq", "ne"):
    setattr(Int, f"__{_name}__", _comparison(f"__{_name}__"))
Int.__hash__ = int.__hash__  # type: ignore[method-assign]  # which a class with an __eq__ of its own loses


@contextmanager
def sizes_followed(model: nn.Module, labels: Labels) -> Iterator[None]:
    """Within it, the integer attributes of `model`'s modules are Ints that report computations with them to `labels`.

    Those of torch's layers that count an axis are the width of that axis; all of other modules, and a norm's number of groups, are
    followed by their names. `model` is a copy made for tracing.
    """
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            _axes_counted(module, labels)
            for name in _counted_by_name(module):
                vars(module)[name] = Int(getattr(module, name), Source(path, name))
            continue
        _follow_values(vars(module), path, "")
        for name, value in list(vars(module).items()):
            if not name.startswith("_") and is_settings(value):
                _follow_values(vars(value), path, f"{name}.")
    token = _LABELS.set(labels)
    try:
        yield
    finally:
        _LABELS.reset(token)


def _counted_by_name(layer: nn.Module) -> list[str]:
    """The attributes of a layer of torch's that count what none of its tensors shows."""
    bare_norm = isinstance(layer, nn.modules.batchnorm._NormBase) and not list(layer.parameters()) + list(layer.buffers())
    return ["num_groups"] * isinstance(layer, nn.GroupNorm) + ["d_model"] * isinstance(layer, nn.Transformer) + ["num_features"] * bare_norm


def _follow_values(values: dict[str, Any], path: str, prefix: str) -> None:
    """Make Ints of the integers, and lists and tuples of them, among the attributes `values` of a module or of its settings."""
    for name, value in list(values.items()):
        if name.startswith("_"):
            continue
        if _counts(value):
            values[name] = Int(value, Source(path, prefix + name))
        elif type(value) in (list, tuple) and value and all(_counts(v) for v in value):
            values[name] = type(value)(Int(v, Source(path, prefix + name, i)) for i, v in enumerate(value))


def _axes_counted(layer: nn.Module, labels: Labels) -> None:
    for where in storage(layer).values():
        tensor, dim = where.tensors[0]
        atoms = labels.registered(getattr(layer, tensor), dim)
        for name in where.attributes:
            value = getattr(layer, name)
            if atoms is not None and _counts(value) and value == len(atoms):
                setattr(layer, name, Int(value, None, (atoms,)))


def _counts(value: Any) -> bool:
    return type(value) is int and value > 0
