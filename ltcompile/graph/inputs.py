"""What a network is called with: positional and keyword arguments, made of an example."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ltcompile.errors import InvalidData, InvalidSetting
from ltcompile.graph.rules import tensors_in

# A tensor; a tuple or list of positional arguments; a dict of keyword arguments. Arguments may be nested, and need not all be tensors.
Example = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


class Arguments(NamedTuple):
    """The arguments of one call of a network."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example: Example) -> Arguments:
        """Raises InvalidSetting for an example of another kind, or without a tensor in it; the message says how to pass it."""
        if isinstance(example, Arguments):
            return example
        if isinstance(example, Tensor):
            return cls((example,), {})
        if isinstance(example, (tuple, list)):
            made = cls(tuple(example), {})
        elif isinstance(example, Mapping):
            made = cls((), dict(example))
        else:
            hint = "; torch.from_numpy makes a tensor of an array" if type(example).__module__ == "numpy" else ""
            raise InvalidSetting(
                "the example must be a tensor, a tuple of positional arguments or a dict of keyword arguments, "
                f"not {type(example).__name__}{hint}"
            )
        if not all(isinstance(name, str) for name in made.kwargs):
            raise InvalidSetting("an example that is a dict holds keyword arguments by their names; put a dict argument into a tuple: (d,)")
        if not made.tensors:
            raise InvalidSetting(f"the example {_short(example)} holds no tensor; for inputs of a shape, pass torch.randn(1, 3, 32, 32)")
        return made

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in the arguments."""
        return tensors_in(self)

    @property
    def shapes(self) -> str:
        """The shapes of the tensors, for messages."""
        return ", ".join(str(tuple(t.shape)) for t in self.tensors)

    def map(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """The same arguments with each tensor changed."""
        return Arguments(*tree_map_only(Tensor, change, (self.args, self.kwargs)))

    def on_meta(self) -> Arguments:
        """The same shapes without values."""
        return self.map(lambda t: torch.empty_like(t, device="meta"))

    def first(self) -> Arguments:
        """The first item of the batch: of every tensor that is as long as the first one."""
        size = next((len(t) for t in self.tensors if t.dim()), 0)
        return self.map(lambda t: t[:1] if t.dim() and len(t) == size else t)

    def twice(self) -> Arguments:
        """Two items for one: a batch norm trains on no single value."""
        return self.map(lambda t: torch.cat([t, t]) if t.dim() and len(t) == 1 else t)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def check_arguments(model: nn.Module, inputs: Arguments) -> None:
    """Raises InvalidData where the network's forward does not take arguments of these names."""
    parameters = inspect.signature(model.forward).parameters
    try:
        inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        given = ", ".join([f"{len(inputs.args)} without a name"] * bool(inputs.args) + list(inputs.kwargs))
        raise InvalidData(f"inputs give {given}, and the network takes {', '.join(parameters)} ({error}); name them so") from error
