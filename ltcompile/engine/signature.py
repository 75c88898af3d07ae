"""What an engine takes and gives: tensors of any number, rank and dtype, for any number of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ltcompile.errors import InvalidData, InvalidModel
from ltcompile.graph.outputs import outputs_of
from ltcompile.lower.inputs import Inputs, path_name

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Signature:
    """The inputs' names, dtypes and shapes, without the batch where they are `batched`; the outputs' names, and which of them are batched."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    batched: tuple[bool, ...]
    outputs: tuple[str, ...]
    outputs_batched: tuple[bool, ...]
    is_one_tensor: bool

    @classmethod
    def of(cls, network: nn.Module, inputs: Inputs) -> Signature:
        """Of `network` (eval mode). Raises InvalidModel where it does not run on the inputs."""
        two, three = (_run(network, inputs.resized(rows)) for rows in (2, 3))
        per_row = tuple(
            x.dim() > 0 and y.dim() > 0 and (len(x), len(y)) == (2, 3) for x, y in zip(two.values(), three.values(), strict=True)
        )
        one = (
            inputs.is_one_tensor
            and len(two) == 1
            and per_row[0]
            and all(t.dtype == torch.float32 for t in (inputs.tensors[0], *two.values()))
        )
        shapes = tuple(tuple(t.shape[1:] if has else t.shape) for t, has in zip(inputs.tensors, inputs.batched, strict=True))
        return cls(inputs.names, tuple(_dtype(t) for t in inputs.tensors), shapes, inputs.batched, tuple(two), per_row, one)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Signature:
        """Raises KeyError, TypeError or ValueError where the value is none."""
        shapes = tuple(tuple(int(n) for n in shape) for shape in value["shapes"])
        names, dtypes, outputs = (tuple(str(x) for x in value[name]) for name in ("names", "dtypes", "outputs"))
        batched, flags = (tuple(bool(x) for x in value[name]) for name in ("batched", "outputs_batched"))
        found = cls(names, dtypes, shapes, batched, outputs, flags, bool(value["is_one_tensor"]))
        if not (len(names) == len(dtypes) == len(shapes) == len(batched) > 0 and any(batched) and len(outputs) == len(flags) > 0):
            raise ValueError("the engine's inputs and outputs contradict each other")
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return ", ".join(f"{name} {self._wanted(at)}" for at, name in enumerate(self.names))

    def arrange(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensors:
        """The tensors of a call in the order of `names`. Raises InvalidData where they are others than the network takes."""
        found = dict(zip(self.names, (leaf for leaf in pytree.tree_leaves(list(args)) if isinstance(leaf, Tensor)), strict=False))
        found |= {path_name(path): leaf for path, leaf in pytree.tree_flatten_with_path(dict(kwargs))[0] if isinstance(leaf, Tensor)}
        count = sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves([list(args), dict(kwargs)]))
        if found.keys() != set(self.names) or count != len(self.names):
            raise InvalidData(f"the engine takes {self}; it got {count} tensors{f': {chr(44).join(kwargs)}' if kwargs else ''}")
        tensors = tuple(found[name] for name in self.names)
        for at, (tensor, has) in enumerate(zip(tensors, self.batched, strict=True)):
            shape = tuple(tensor.shape[1:] if has else tensor.shape)
            if _dtype(tensor) != self.dtypes[at] or (has and not tensor.dim()) or shape != self.shapes[at] or (has and not len(tensor)):
                raise InvalidData(f"{self.names[at]} must be {self._wanted(at)}, not {tensor.dtype} {tuple(tensor.shape)}")
        rows = {name: len(t) for name, t, has in zip(self.names, tensors, self.batched, strict=True) if has}
        if len(set(rows.values())) > 1:
            raise InvalidData(f"the inputs must have the same number of rows, not {', '.join(f'{n} {count}' for n, count in rows.items())}")
        return tensors

    def rows(self, tensors: Sequence[Tensor]) -> int:
        """The number of rows of a call."""
        return next(len(t) for t, has in zip(tensors, self.batched, strict=True) if has)

    def resized(self, tensors: Sequence[Tensor], rows: int) -> Tensors:
        """The first `rows` of all batched tensors, which repeat where there are fewer."""
        index = torch.arange(rows) % self.rows(tensors)
        return tuple(t[index.to(t.device)] if has else t for t, has in zip(tensors, self.batched, strict=True))

    def _wanted(self, at: int) -> str:
        return f"{self.dtypes[at]} ({', '.join(map(str, (*(['N'] if self.batched[at] else []), *self.shapes[at])))})"


def outputs(given: Tensor | Tensors) -> Tensors:
    """What a run gives, as a tuple."""
    return (given,) if isinstance(given, Tensor) else given


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@torch.no_grad()
def _run(network: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    args, kwargs = inputs.arguments()
    try:
        return outputs_of(network(*args, **kwargs))
    except Exception as error:  # the user's code may raise anything
        given = ", ".join(f"{_dtype(tensor)} {tuple(tensor.shape)}" for tensor in inputs.tensors)
        raise InvalidModel(
            f"the network does not run on {inputs.batch} rows of the example, {given}: {type(error).__name__}: {error}"
        ) from error
