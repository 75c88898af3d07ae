"""Integer attributes of a cut network that no forward pass reads, and that may still count the channels before the cut."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from ltcompile.core.plan import PruningPlan
from ltcompile.graph._groups import makes_output


class OutdatedAttribute(NamedTuple):
    """The attribute `name` of the module at `path` equals `before`, the former width of what layer `head` reads; `after` are left.

    `methods` of the module read it, such as one that builds a new head.
    """

    path: str
    name: str
    before: int
    after: int
    head: str
    methods: tuple[str, ...]

    def __str__(self) -> str:
        where = f"{self.path}.{self.name}".lstrip(".")
        return f"{where} is {self.before} where {self.after} channels reach {self.head!r} now (read by {', '.join(self.methods)})"


def outdated_attributes(small: nn.Module, plan: PruningPlan) -> list[OutdatedAttribute]:
    """Attributes of `small`, which `plan` cut, that look outdated: of the modules around a layer that makes the network's output.

    Tracing follows what the forward pass reads. Of the rest, equal numbers prove nothing, so nothing is changed; those that a public
    method reads are listed.
    """
    heads = {m.layer for g in plan.groups if makes_output(g) for m in g.producers}
    found: dict[tuple[str, str], OutdatedAttribute] = {}
    for group, kept in plan:
        for head in [m.layer for m in group.members if m.axis == "in" and m.layer in heads and len(kept) < group.width]:
            for path, name, methods in _read_elsewhere(small, head, group.width):
                found.setdefault((path, name), OutdatedAttribute(path, name, group.width, len(kept), head, methods))
    return list(found.values())


def _read_elsewhere(small: nn.Module, head: str, value: int) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(path, attribute, methods that read it) of the modules around `head`, for attributes equal to `value`."""
    parts = head.split(".")
    for path in [".".join(parts[:depth]) for depth in range(len(parts))]:
        module = small.get_submodule(path)
        for name, number in vars(module).items():
            if type(number) is int and number == value and (methods := _methods_that_read(type(module), name)):
                yield path, name, methods


def _methods_that_read(kind: type[nn.Module], name: str) -> tuple[str, ...]:
    """Public methods of `kind` that name the attribute, but for those of the forward pass and torch's own."""
    methods = {
        method: inspect.unwrap(function)
        for base in kind.__mro__
        if not base.__module__.startswith("torch.nn.")
        for method, function in vars(base).items()
        if inspect.isfunction(function) and not method.startswith(("_", "forward"))
    }
    return tuple(method for method, function in methods.items() if name in function.__code__.co_names)
