"""One operation as a rule sees it, and the list of all rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ltcompile.graph._labels import Labels

FIXED_SIZE = "meets a tensor of fixed size"


@dataclass
class Requests:
    """The sizes that the network's own code requested, in the call that is running: they record their sources."""

    sizes: list[Any] = field(default_factory=list)  # of a reshape
    parts: Any = None  # of a split: a size, or a list of them
    chunks: bool = False
    bounds: list[tuple[Any, Any]] = field(default_factory=list)  # of slices, in order
    norm: Any = None  # the normalised shape of a layer norm, the number of groups of a group norm
    paused: bool = False  # the operations of this call are labelled as one


@dataclass
class Call:
    """One operation: its arguments by name, what it gave, and what was requested."""

    name: str
    values: dict[str, Any]
    out: Any
    labels: Labels
    requests: Requests
    func: Any = None  # None for a call that is labelled as one, although it comes down to several operations
    zero: list[bool] | None = None  # a rule says where its result is zero for masked channels; see `_zeros`

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def dim(self, rank: int | None = None) -> int:
        """The dimension argument, counted from the front."""
        value = int(self.values["dim"])
        return value % (rank if rank is not None else self.values["self"].dim())

    @property
    def tensors(self) -> list[Tensor]:
        return tensors_in(self.values.values())


Rule = Callable[[Call], Any]
RULES: dict[str, Rule] = {}


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple, type({}.values()))):
        return []
    return [t for v in value for t in tensors_in(v)]


def rule(*names: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def aten(names: str) -> list[str]:
    """ "add mul" -> ["aten.add", "aten.mul"]."""
    return [f"aten.{name}" for name in names.split()]


def why_fixed(call: Call) -> str:
    """The reason of a channel that meets, in this operation, what is none."""
    return f"it {FIXED_SIZE} in {call.name}"
