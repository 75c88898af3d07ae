"""Joining tensors and taking them apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from ltcompile.graph._ints import attribute_of, widths_of
from ltcompile.graph._labels import Atoms, Dims, Labels
from ltcompile.graph.rules._call import FIXED_SIZE, Call, Requests, rule, why_fixed


@rule("aten.cat")
def _cat(call: Call) -> Dims:
    labels, parts = call.labels, [t for t in call["tensors"] if t.numel() or t.dim() > 1]
    axis = int(call.values.get("dim") or 0) % call.out.dim()
    dims: Dims = [None] * call.out.dim()
    call.zero = [all(labels.zero(t)[at] or (at == axis and labels[t][at] is None) for t in parts) for at in range(call.out.dim())]
    for at in range(call.out.dim()):
        pieces = [labels[t][at] for t in parts]
        if at != axis:
            dims[at] = pieces[0]
            for piece in pieces[1:]:
                dims[at] = labels.join(dims[at], piece, why_fixed(call)) if call.out.shape[at] > 1 else None
        elif any(p is not None for p in pieces):
            dims[at] = np.concatenate([_stay(labels, int(t.shape[at])) if p is None else p for p, t in zip(pieces, parts, strict=True)])
    return dims


def _stay(labels: Labels, size: int) -> Atoms:
    """Positions that are not channels, next to some that are."""
    atoms = labels.fresh(size)
    labels.pin(atoms, FIXED_SIZE)
    return atoms


@rule("aten.stack")
def _stack(call: Call) -> Dims:
    labels, parts = call.labels, call["tensors"]
    dims = list(labels[parts[0]])
    for part in parts[1:]:
        dims = [labels.join(a, b, why_fixed(call)) if n > 1 else None for a, b, n in zip(dims, labels[part], part.shape, strict=True)]
    axis = int(call.values.get("dim") or 0) % call.out.dim()
    call.zero = [all(flags) for flags in zip(*(labels.zero(t) for t in parts), strict=True)]
    call.zero.insert(axis, False)
    dims.insert(axis, None)
    return dims


@rule("aten.split", "aten.split_with_sizes", "aten.split_with_sizes_copy", "aten.split_copy", "aten.chunk")
def _split_parts(call: Call) -> tuple[Dims, ...]:
    labels, x = call.labels, call["self"]
    axis = int(call.values.get("dim") or 0) % x.dim()
    dims, atoms = labels[x], labels[x][axis]
    ends = np.cumsum([int(part.shape[axis]) for part in call.out])
    if atoms is None:
        return tuple(list(dims) for _ in call.out)
    pieces = np.split(atoms, ends[:-1])
    _size_parts(labels, atoms, pieces, call.requests)
    return tuple([*dims[:axis], piece, *dims[axis + 1 :]] for piece in pieces)


def _size_parts(labels: Labels, whole: Atoms, pieces: list[Atoms], requests: Requests) -> None:
    """What keeps the pieces of a split as large as the code takes them."""
    requested = requests.parts
    if requests.chunks and len({len(p) for p in pieces}) == 1:
        labels.tie(*pieces)
    elif isinstance(requested, (list, tuple)) and len(requested) == len(pieces):
        _sizes_follow(labels, whole, pieces, list(requested))
    elif not isinstance(requested, (list, tuple)) and requested is not None and len({len(p) for p in pieces}) == 1:
        _sizes_follow(labels, whole, pieces, [requested] * len(pieces))
        labels.tie(*pieces)
    else:
        labels.pin(whole, "it is split into parts of fixed size")


def _sizes_follow(labels: Labels, whole: Atoms, pieces: list[Atoms], requested: list[Any]) -> None:
    for size, piece in zip(requested, pieces, strict=True):
        source, widths = attribute_of(size), widths_of(size)
        if source is not None:
            counted = labels.attributes.get(source)
            if counted is None:
                labels.follow(source, piece)
            else:  # pieces that one attribute sizes keep the same width, of channels of their own
                labels.tie(counted, piece)
        elif widths:
            labels.tie(*widths, *pieces)
        else:
            labels.pin(piece, "it is split off with a fixed size")


@rule("aten.slice", "aten.slice_copy")
def _slice(call: Call) -> Dims:
    labels, x = call.labels, call["self"]
    axis = int(call.values.get("dim") or 0) % x.dim()
    dims, atoms = list(labels[x]), labels[x][axis]
    if atoms is None:
        return dims
    size, step = len(atoms), int(call.values.get("step") or 1)
    start, end = _bound(call.values.get("start"), 0, size), _bound(call.values.get("end"), size, size)
    dims[axis] = atoms[start:end:step]
    if (start, end, step) == (0, size, 1):
        return dims
    requested = _requested_bounds(call.requests, call.values.get("start"), call.values.get("end"))
    inner = [(bound, at) for bound, at in zip(requested or (), (start, end), strict=False) if 0 < at < size and int(bound) == at]
    _slice_follows(labels, atoms, inner if step == 1 else [])
    return dims


def _slice_follows(labels: Labels, atoms: Atoms, inner: list[tuple[Any, int]]) -> None:
    """What keeps the slice at its place: the bounds inside are attributes, or follow the widths of tensors."""
    source = attribute_of(inner[0][0]) if len(inner) == 1 else None
    if source is not None:
        labels.follow(source, atoms[: inner[0][1]])
    elif inner and all(widths_of(bound) for bound, _ in inner):
        labels.tie(*(w for bound, _ in inner for w in widths_of(bound)), *np.split(atoms, [at for _, at in inner]))
    else:
        labels.pin(atoms, "a slice takes a fixed part of it")


def _bound(value: Any, default: int, size: int) -> int:
    if value is None:
        return default
    at = int(value)
    return max(0, min(size, at + size if at < 0 else at))


def _requested_bounds(requests: Requests, start: Any, end: Any) -> tuple[Any, Any] | None:
    """The bounds in the code that this slice came from."""
    for i, (low, high) in enumerate(requests.bounds):
        if (low is None or int(low) == int(start or 0)) and (high is None or end is None or int(high) == int(end)):
            requests.bounds.pop(i)
            return (0 if low is None else low), (end if high is None else high)
    return None


@rule("aten.select", "aten.select_copy")
def _select(call: Call) -> Dims:
    dims = list(call.labels[call["self"]])
    call.labels.pin(dims.pop(call.dim()), "a single one of them is taken by its number")
    return dims


@rule("aten.unbind", "aten.unbind_copy")
def _unbind(call: Call) -> tuple[Dims, ...]:
    x = call["self"]
    axis = int(call.values.get("dim") or 0) % x.dim()
    dims = list(call.labels[x])
    call.labels.pin(dims.pop(axis), "they are taken apart one by one")
    return tuple(list(dims) for _ in call.out)


@rule("aten.index", "aten._unsafe_index")
def _index(call: Call) -> Dims:
    labels, x = call.labels, call["self"]
    indices = [*call["indices"], *[None] * (x.dim() - len(call["indices"]))]
    at = [i for i, index in enumerate(indices) if index is not None]
    dims = labels[x]
    for i in at:
        labels.pin(dims[i], "single ones of them are taken by their number")
    rank = call.out.dim() - (x.dim() - len(at))
    adjacent = at == list(range(at[0], at[-1] + 1))
    front = [dims[i] for i in range(at[0])] if adjacent else []
    rest = [dims[i] for i in range(x.dim()) if i not in at and not (adjacent and i < at[0])]
    return [*front, *[None] * rank, *rest]


@rule("aten.index_select")
def _index_select(call: Call) -> Dims:
    dims = list(call.labels[call["self"]])
    call.labels.pin(dims[call.dim()], "single ones of them are taken by their number")
    dims[call.dim()] = None
    return dims


@rule("aten.embedding")
def _embedding(call: Call) -> Dims:
    rows, width = call.labels[call["weight"]]
    call.labels.pin(rows, "the rows of an embedding are taken by their number")
    return [*[None] * (call.out.dim() - 1), width]


@rule("aten._embedding_bag", "aten._embedding_bag_forward_only")
def _embedding_bag(call: Call) -> tuple[Dims, ...]:
    """Sums or means of rows (rows, width) -> (bags, width), with what the backward pass needs."""
    rows, width = call.labels[call["weight"]]
    call.labels.pin(rows, "the rows of an embedding are taken by their number")
    call.zero = [False, call.labels.zero(call["weight"])[1]]
    return ([None, width],)


@rule("aten.glu")
def _glu(call: Call) -> Dims:
    """The second half gates the first, channel by channel."""
    dims, call.zero = list(call.labels[call["self"]]), list(call.labels.zero(call["self"]))
    at = int(call.values.get("dim", -1)) % len(dims)
    atoms = dims[at]
    if atoms is not None:
        half = len(atoms) // 2
        dims[at] = call.labels.join(atoms[:half], atoms[half:], "")
    return dims


@rule("aten.constant_pad_nd")
def _pad(call: Call) -> Dims:
    labels, x = call.labels, call["self"]
    dims, pads = list(labels[x]), [int(p) for p in call["pad"]]
    for back in range(len(pads) // 2):
        at, before, after = x.dim() - 1 - back, pads[2 * back], pads[2 * back + 1]
        atoms = dims[at]
        if atoms is not None and (before < 0 or after < 0):
            labels.pin(atoms, "a padding takes a fixed part of it away")
            atoms = atoms[max(0, -before) : len(atoms) + min(0, after)]
        if atoms is not None:
            dims[at] = np.concatenate([_stay(labels, max(0, before)), atoms, _stay(labels, max(0, after))])
    return dims


@rule("aten.gather")
def _gather(call: Call) -> Dims:
    """Along one dimension, values are taken by number; along the others, by the channel itself."""
    labels, index, axis = call.labels, call["index"], call.dim()
    dims = list(labels[call["self"]])
    labels.pin(dims[axis], "single ones of them are taken by their number")
    dims[axis] = None
    by = labels[index]
    labels.pin(by[axis], "they say which ones are taken")
    for at, (atoms, of_index) in enumerate(zip(dims, by, strict=True)):
        if at != axis and atoms is not None:
            same = index.shape[at] == len(atoms) and index.stride(at) == 0 and of_index is None  # expanded to the size of the other
            dims[at] = atoms if same else labels.join(atoms, of_index, why_fixed(call))
    return dims


@rule("aten.index_add", "aten.index_add_", "aten.index_copy", "aten.index_copy_")
def _index_add(call: Call) -> Dims:
    """Along one dimension, values are added or put by number; along the others, to the channel itself."""
    labels, axis = call.labels, call.dim()
    mine, other = list(labels[call["self"]]), labels[call["source"]]
    call.zero = [a and b for a, b in zip(labels.zero(call["self"]), labels.zero(call["source"]), strict=True)]
    for atoms in (mine[axis], other[axis]):
        labels.pin(atoms, "single ones of them are taken by their number")
    return [None if at == axis else _other(labels, a, b, why_fixed(call)) for at, (a, b) in enumerate(zip(mine, other, strict=True))]


def _other(labels: Labels, a: Atoms | None, b: Atoms | None, reason: str) -> Atoms | None:
    return None if a is None and b is None else labels.join(a, b, reason)
