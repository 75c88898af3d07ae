"""Reshapes: which of the new dimensions counts channels, and what must shrink with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ltcompile.graph._ints import attribute_of, widths_of
from ltcompile.graph._labels import Atoms, Dims, Labels
from ltcompile.graph.rules._call import Call, rule


@rule("aten.view", "aten._unsafe_view", "aten.reshape", "aten._reshape_alias", "aten.view_copy", "aten.unflatten")
def _view(call: Call) -> Dims:
    labels, x, out = call.labels, call["self"], call.out
    old, new = [int(n) for n in x.shape], [int(n) for n in out.shape]
    requested = call.requests.sizes if _fits(call.requests.sizes, new) else []
    dims: Dims = []
    for olds, news in _blocks(old, new):
        before = [labels[x][i] for i in olds]
        wanted = [requested[j] for j in news] if requested else [None] * len(news)
        after = _split(labels, _merged(labels, before, [old[i] for i in olds]), [new[j] for j in news], wanted)
        _follow(labels, before, after, wanted)
        dims += after
    return dims


def _fits(requested: list[Any], shape: list[int]) -> bool:
    return len(requested) == len(shape) and all(int(a) in (-1, n) for a, n in zip(requested, shape, strict=True))


def _blocks(old: list[int], new: list[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions of both shapes with the same number of elements."""
    blocks, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        olds, news = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(olds), j + len(news)
        a, b = (old[olds[0]] if olds else 1), (new[news[0]] if news else 1)
        while a != b:
            if a < b:
                olds.append(i)
                a, i = a * old[i], i + 1
            else:
                news.append(j)
                b, j = b * new[j], j + 1
        blocks.append((olds, news))
    return blocks


def _merged(labels: Labels, dims: list[Atoms | None], sizes: list[int]) -> Atoms | None:
    """The labels of several dimensions laid out as one."""
    labelled = [i for i, atoms in enumerate(dims) if atoms is not None]
    if not labelled:
        return None
    first = labelled[0]
    for other in labelled[1:]:
        labels.pin(dims[other], "it is merged with other channels in a reshape")
    atoms = dims[first]
    assert atoms is not None
    view = atoms.reshape([-1 if i == first else 1 for i in range(len(sizes))])
    return np.broadcast_to(view, sizes).reshape(-1)


def _split(labels: Labels, flat: Atoms | None, sizes: list[int], requested: list[Any]) -> Dims:
    """The labels of one run laid out as several dimensions: one of them counts channels, the others lie inside a channel."""
    if flat is None:
        return [None] * len(sizes)
    if sum(n > 1 for n in sizes) == 1:
        return [flat if n > 1 else None for n in sizes]
    grid = flat.reshape(sizes)
    varying = [j for j, n in enumerate(sizes) if n > 1 and bool((grid != grid.take([0], axis=j)).any())]
    if not varying:
        return [None] * len(sizes)
    live = varying[0] if len(varying) == 1 else _live(varying, requested)
    if live is None:
        labels.pin(flat, "it is reshaped to sizes that are fixed in the network's code")
        return [None] * len(sizes)
    for j in varying:
        if j != live:
            first = grid.take([0], axis=j)
            labels.join(grid, np.broadcast_to(first, grid.shape), "")
            grid = np.broadcast_to(first, grid.shape)
    atoms = np.moveaxis(grid, live, 0).reshape(sizes[live], -1)[:, 0]
    return [np.ascontiguousarray(atoms) if j == live else None for j in range(len(sizes))]


def _live(varying: list[int], requested: list[Any]) -> int | None:
    """The dimension whose size can shrink: a number of heads that is an attribute, else a size that follows the tensor's own."""
    attributes = [j for j in varying if attribute_of(requested[j]) is not None]
    following = [j for j in varying if requested[j] is not None and (int(requested[j]) == -1 or widths_of(requested[j]))]
    return next(iter(attributes or following), None)


def _follow(labels: Labels, before: Dims, after: Dims, wanted: list[Any]) -> None:
    """Attributes follow the channels that they count; widths of other tensors in the request keep their ratio to these."""
    for size, atoms in zip(wanted, after, strict=True):
        source = attribute_of(size)
        if source is not None and int(size) > 1:
            labels.follow(source, atoms)
    others = [w for size in wanted for w in widths_of(size)]
    if others:
        labels.tie(*others, *(atoms for atoms in before if atoms is not None))
