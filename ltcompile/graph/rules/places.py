"""Dimensions that trade places, come, go or are repeated."""

from __future__ import annotations

import numpy as np

from ltcompile.graph._labels import Dims
from ltcompile.graph.rules._call import Call, rule


@rule("aten.permute")
def _permute(call: Call) -> Dims:
    dims = call.labels[call["self"]]
    return [dims[int(d)] for d in call["dims"]]


@rule("aten.t")
def _t(call: Call) -> Dims:
    return list(reversed(call.labels[call["self"]]))


@rule("aten.transpose", "aten.swapaxes", "aten.transpose_")
def _transpose(call: Call) -> Dims:
    dims = list(call.labels[call["self"]])
    rank = len(dims)
    a, b = int(call["dim0"]) % rank, int(call["dim1"]) % rank
    dims[a], dims[b] = dims[b], dims[a]
    return dims


@rule("aten.unsqueeze", "aten.unsqueeze_")
def _unsqueeze(call: Call) -> Dims:
    dims = list(call.labels[call["self"]])
    dims.insert(call.dim(rank=call.out.dim()), None)
    return dims


@rule("aten.squeeze", "aten.squeeze_")
def _squeeze(call: Call) -> Dims:
    x = call["self"]
    named = call.values.get("dim")
    gone = range(x.dim()) if named is None else [int(d) % x.dim() for d in (named if isinstance(named, (list, tuple)) else [named])]
    return [atoms for at, atoms in enumerate(call.labels[x]) if not (at in gone and x.shape[at] == 1)]


@rule("aten.expand")
def _expand(call: Call) -> Dims:
    return [*[None] * (call.out.dim() - call["self"].dim()), *call.labels[call["self"]]]


@rule("aten.as_strided_", "aten.as_strided")
def _as_strided(call: Call) -> Dims | None:
    """Pooling on other memory formats ends in one that only changes strides."""
    x = call["self"]
    if list(x.shape) == list(call["size"]):
        return call.labels[x]
    call.labels.pin_all([x], "its memory layout is changed by as_strided")
    return None


@rule("aten.repeat")
def _repeat(call: Call) -> Dims:
    x, times = call["self"], [int(r) for r in call["repeats"]]
    dims: Dims = [*[None] * (len(times) - x.dim()), *call.labels[x]]
    return [None if atoms is None else np.tile(atoms, r) for atoms, r in zip(dims, times, strict=True)]


@rule("aten.flip")
def _flip(call: Call) -> Dims:
    dims = list(call.labels[call["self"]])
    for d in call["dims"]:
        atoms = dims[int(d)]
        dims[int(d)] = None if atoms is None else atoms[::-1]
    return dims


@rule("aten.roll")
def _roll(call: Call) -> Dims:
    dims = list(call.labels[call["self"]])
    for d in call["dims"] or range(len(dims)):
        call.labels.pin(dims[int(d)], "it is rolled")
    return dims


@rule("aten.rot90")
def _rot90(call: Call) -> Dims:
    """Two dimensions turn: they trade places for odd numbers of quarters."""
    dims = list(call.labels[call["self"]])
    a, b = (int(d) % len(dims) for d in call["dims"])
    if int(call["k"]) % 4:
        for at in (a, b):
            call.labels.pin(dims[at], "it is turned together with another dimension")
        dims[a] = dims[b] = None
    return dims


@rule("aten.view_as_complex")
def _view_as_complex(call: Call) -> Dims:
    """(..., 2) -> (...)."""
    dims = list(call.labels[call["self"]])
    call.labels.pin(dims.pop(), "it is taken for real and imaginary parts")
    return dims


@rule("aten.view_as_real")
def _view_as_real(call: Call) -> Dims:
    return [*call.labels[call["self"]], None]
