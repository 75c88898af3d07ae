"""What a network gives: the tensors in any container, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

from torch import Tensor

from ltcompile.errors import InvalidModel


def outputs_of(output: Any) -> dict[str, Tensor]:
    """The tensors that a network gives, by name: "output" alone, "output_0" ... of a sequence, else keys and fields; places inside
    containers behind a dot. Raises InvalidModel where there is none."""
    if isinstance(output, Tensor):
        return {"output": output}
    if isinstance(output, (tuple, list)) and not hasattr(output, "_fields"):
        output = {f"output_{at}": value for at, value in enumerate(output)}
    found = [(name, leaf) for name, leaf in named_leaves("", output) if isinstance(leaf, Tensor)]
    if not found:
        raise InvalidModel(
            f"the network gives no tensor but {type(output).__name__}; return tensors, or tuples, dicts or dataclasses of them"
        )
    return dict(zip(unique_names(name for name, _ in found), (leaf for _, leaf in found), strict=True))


def named_leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(name, leaf) of everything in nested containers, in order."""
    if isinstance(value, Mapping):
        items = [(str(key), v) for key, v in value.items()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, (tuple, list)):
        items = list(zip(getattr(value, "_fields", map(str, range(len(value)))), value, strict=True))
    else:
        yield name, value
        return
    for key, inner in items:
        yield from named_leaves(f"{name}.{key}" if name else key, inner)


def unique_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once: those that were there before get a line behind them."""
    taken: list[str] = []
    for name in names:
        taken.append(next(free for lines in count() if (free := name + "_" * lines) not in taken))
    return tuple(taken)
