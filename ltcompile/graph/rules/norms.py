"""Normalisation."""

from __future__ import annotations

import numpy as np

from ltcompile.graph._labels import Dims
from ltcompile.graph.rules._call import INPUT, Call, rule


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
            dims[1] = labels.join(dims[1], labels[call[name]][0], INPUT)
    return dims


@rule("aten.native_layer_norm", "aten._fused_rms_norm", "aten.rms_norm", "aten.layer_norm")
def _layer_norm(call: Call) -> Dims:
    """Its statistics mix channels; the reference leaves the dropped ones out of them (see `statistics`)."""
    labels, x = call.labels, call["input"]
    dims, count = list(labels[x]), len(call["normalized_shape"])
    inside = dims[-count:]
    for name in ("weight", "bias"):
        if call.values.get(name) is not None:
            affine = labels[call[name]]
            inside = [a if n == 1 else labels.join(a, b, INPUT) for a, b, n in zip(inside, affine, x.shape[-count:], strict=True)]
    if count > 1 or all(call.values.get(n) is None for n in ("weight", "bias")):
        for atoms in inside:
            labels.pin(atoms, "a layer norm without weights, or over several dimensions, takes statistics over it")
    return [*dims[:-count], *inside]


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
            dims[1] = labels.join(dims[1], labels[call[name]][0], INPUT)
    if groups == 1 and call.values.get("weight") is None:
        labels.pin(dims[1], "a group norm without weights takes statistics over it")
    if groups > 1 and dims[1] is not None:
        blocks = dims[1].reshape(groups, -1)
        labels.join(blocks, np.broadcast_to(blocks[:, :1], blocks.shape), "")
    return dims
