"""Batches of any task: splitting one into parts, joining the outputs of the parts, and calling a network with inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ltcompile.core.task import Batch, items
from ltcompile.graph.inputs import Arguments
from ltcompile.graph.wrappers import in_eval_mode
from ltcompile.training.memory import fitting


def split(batch: Batch, parts: int) -> list[Batch]:
    """`batch` in so many parts, of which the first are one item larger where they differ."""
    count = items(batch)
    bounds = [i * (count // parts) + min(i, count % parts) for i in range(parts + 1)]
    return [batch if parts == 1 else _rows(batch, start, end) for start, end in pairwise(bounds)]


def _rows(value: Any, start: int, end: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_rows(each, start, end) for each in value)
    if isinstance(value, Mapping):
        return {name: _rows(each, start, end) for name, each in value.items()}
    return value[start:end]


def joined(parts: list[Any]) -> Any:
    """The outputs for several parts of a batch as those for the whole."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, list):
        return [each for part in parts for each in part]
    if isinstance(first, tuple):
        return tuple(joined(list(each)) for each in zip(*parts, strict=True))
    return {name: joined([part[name] for part in parts]) for name in first}


def to_layout(values: Any, layout: torch.memory_format) -> Any:
    """Tensors of images (N, C, H, W) in `layout`, all others as they are."""
    return tree_map_only(Tensor, lambda x: x.contiguous(memory_format=layout) if x.dim() == 4 else x, values)


def in_fp32(values: Any) -> Any:
    """Tensors in bfloat16 as fp32, all others as they are."""
    return tree_map_only(Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, values)


def call(model: nn.Module, inputs: Any) -> Any:
    """The outputs of `model`."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    found = Arguments.of(inputs)
    return model(*found.args, **found.kwargs)


@torch.no_grad()
def predictions(model: nn.Module, batches: Iterable[Batch]) -> Iterator[tuple[Any, Any]]:
    """The outputs of `model` in eval mode for each batch, with the batch's targets.

    They are in fp32, as the network is deployed, however it was trained. Batches are computed in parts where memory runs out.
    """
    parts = 1

    def outputs(batch: Batch, parts: int) -> Any:
        return joined([call(model, inputs) for inputs, _ in split(batch, parts)])

    with in_eval_mode(model):
        for batch in batches:
            found, parts = fitting(partial(outputs, batch), items(batch), parts)
            yield found, batch[1]
