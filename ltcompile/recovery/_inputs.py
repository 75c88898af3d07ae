"""The inputs of a repair: in parts that run together, some of them held out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ltcompile.errors import InvalidData
from ltcompile.graph.inputs import Arguments, Example
from ltcompile.graph.rules import tensors_in
from ltcompile.graph.wrappers import in_eval_mode

CHUNK = 64  # inputs that run together
FOLDS = 5  # every fifth chunk is held out


@dataclass
class Chunk:
    inputs: Arguments
    held: bool
    expected: Any = None


def read_chunks(inputs: Iterable[Example], most: int) -> list[Chunk]:
    """The inputs in parts of at most CHUNK, of which some are held out. Raises InvalidData."""
    batches: list[Arguments] = []
    count = 0
    for batch in inputs:
        given = Arguments.of(batch)
        if any(t.is_floating_point() and not t.isfinite().all() for t in given.tensors):
            raise InvalidData("inputs hold values that are not finite; leave them out")
        batches.append(given)
        count += length(given)
        if count >= most:
            break
    if all(torch.equal(a, b) for given in batches for t in given.tensors for a, b in itertools.pairwise(t) if t.dim()) and count > 1:
        raise InvalidData("the inputs are constant: all are the same, and nothing can be solved from them; pass inputs that differ")
    size = max(1, min(CHUNK, count // FOLDS))
    found = [part for batch in batches for part in parts(batch, size)][: -(-most // size)]
    if len(found) < 2:
        raise InvalidData(f"inputs give {count} inputs, and repair needs two at least: to solve on, and to choose by; pass more")
    folds = min(FOLDS, len(found))
    return [Chunk(part, at % folds == folds - 1) for at, part in enumerate(found)]


def by_input(chunk: Chunk) -> bool:
    """Whether each output has a row for each input."""
    outputs = [t for t in tensors_in(chunk.expected) if t.is_floating_point()]
    return bool(outputs) and all(t.dim() > 1 and len(t) == length(chunk.inputs) for t in outputs)


def length(inputs: Arguments) -> int:
    return next((len(t) for t in inputs.tensors if t.dim()), 1)


def parts(inputs: Arguments, size: int) -> Iterator[Arguments]:
    """The inputs `size` at a time; as they are where not all tensors have as many rows."""
    count = length(inputs)
    if any(t.dim() == 0 or len(t) != count for t in inputs.tensors):
        yield inputs
        return
    for start in range(0, count, size):
        yield inputs.map(lambda t, start=start: t[start : start + size])  # type: ignore[misc]


@torch.no_grad()
def compared(model: nn.Module, chunks: list[Chunk]) -> tuple[float, float | None]:
    """The relative error of the outputs, and the share of rows whose largest output is the expected one."""
    error = size = agreeing = rows = 0.0
    with in_eval_mode(model):
        for chunk in chunks:
            given, expected = (
                [t for t in tensors_in(out) if t.is_floating_point()]
                for out in (model(*chunk.inputs.args, **chunk.inputs.kwargs), chunk.expected)
            )
            for one, other in zip(given, expected, strict=True):
                error += float((one.double() - other.double()).square().sum())
                size += float((other.double() - other.double().mean(0)).square().sum())
            if len(expected) == 1 and expected[0].dim() == 2 and expected[0].shape[1] > 1:
                agreeing += float((given[0].argmax(1) == expected[0].argmax(1)).sum())
                rows += len(expected[0])
    return (error / max(size, 1e-30)) ** 0.5, agreeing / rows if rows else None
