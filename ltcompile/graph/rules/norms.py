"""Normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from ltcompile.graph._ints import attribute_of, widths_of
from ltcompile.graph._labels import Atoms, Dims, Labels
from ltcompile.graph.rules._call import Call, rule


@rule(
    "aten.native_batch_norm",
    "aten._native_batch_norm_legit",
    "aten._native_batch_norm_legit_no_training",
    "aten._native_batch_norm_legit_functional",
    "aten.cudnn_batch_norm",
    "aten._batch_norm_with_update",
    "aten._batch_norm_no_update",
)
def _batch_norm(call: Call) -> Dims:
    labels, x = call.labels, call.tensors[0]
    dims = list(labels[x])
    for at, atoms in enumerate(dims):
        if at != 1:
            labels.pin(atoms, "a batch norm takes statistics over it")
            dims[at] = None
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.values.get(name) is not None and x.shape[1] > 1:
            dims[1] = labels.meet(x, dims[1], call[name], labels[call[name]][0])
    call.zero = [at == 1 and _affine_zero(call) for at in range(x.dim())]
    return dims


def _affine_zero(call: Call) -> bool:
    """Whether weight and bias make a masked channel zero."""
    weight, bias = call.values.get("weight"), call.values.get("bias")
    return weight is not None and all(call.labels.zero(t)[0] for t in (weight, bias) if t is not None)


@rule("aten.native_layer_norm", "aten._fused_rms_norm", "aten.rms_norm", "aten.layer_norm")
def _layer_norm(call: Call) -> Dims:
    """Its statistics mix channels; the reference leaves the dropped ones out of them (see `statistics`)."""
    labels, x = call.labels, call["input"]
    dims, count = list(labels[x]), len(call["normalized_shape"])
    inside = dims[-count:]
    for name in ("weight", "bias"):
        if call.values.get(name) is not None:
            affine = labels[call[name]]
            inside = [a if n == 1 else labels.meet(x, a, call[name], b) for a, b, n in zip(inside, affine, x.shape[-count:], strict=True)]
    if count > 1 or not _known_to_the_mask(call):
        for atoms in inside:
            labels.pin(atoms, "a layer norm without parameters of its own, or over several dimensions, takes statistics over it")
    requested = call.values["normalized_shape"] if call.func is None else call.requests.norm
    for size, atoms in zip(requested if isinstance(requested, (list, tuple)) else (), inside, strict=False):
        if (source := attribute_of(size)) is not None and int(size) > 1:
            labels.follow(source, atoms)
    call.zero = [at == x.dim() - 1 for at in range(x.dim())]
    return [*dims[:-count], *inside]


def _known_to_the_mask(call: Call) -> bool:
    """Whether the norm's weight or bias is a parameter: by it, a masked network finds the norms that leave channels out."""
    return any(call.labels.is_parameter(call.values.get(name)) for name in ("weight", "bias"))


@rule("aten.native_group_norm")
def _group_norm(call: Call) -> Dims:
    """Whole groups of the norm go; a single group is a layer norm over all channels."""
    labels, x, groups = call.labels, call["input"], call["group"]
    dims = list(labels[x])
    for at, atoms in enumerate(dims):
        if at != 1:
            labels.pin(atoms, "a group norm takes statistics over it")
            dims[at] = None
    for name in ("weight", "bias"):
        if call.values.get(name) is not None:
            dims[1] = labels.meet(x, dims[1], call[name], labels[call[name]][0])
    if groups == 1 and not _known_to_the_mask(call):
        labels.pin(dims[1], "a group norm without parameters of its own takes statistics over it")
    if groups > 1 and dims[1] is not None:
        blocks = dims[1].reshape(groups, -1)
        labels.join(blocks, np.broadcast_to(blocks[:, :1], blocks.shape), "")
        _groups_follow(labels, call.requests.norm, np.ascontiguousarray(blocks[:, 0]))
    call.zero = [at == 1 and (groups == 1 or _affine_zero(call)) for at in range(x.dim())]
    return dims


def _groups_follow(labels: Labels, requested: Any, atoms: Atoms) -> None:
    """The number of groups shrinks with the groups that are left, or they all stay."""
    source = attribute_of(requested)
    if source is not None:
        labels.follow(source, atoms)
    elif not widths_of(requested):
        labels.pin(atoms, "the number of groups of a group norm is fixed in the network's code")
