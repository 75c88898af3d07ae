"""Convolutions, matrix products and attention."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ltcompile.graph._labels import Atoms, Dims
from ltcompile.graph.rules._call import FIXED_SIZE, INPUT, Call, rule, why_fixed


@rule("aten.convolution")
def _convolution(call: Call) -> Dims:
    labels, x, weight, bias, groups = call.labels, call["input"], call["weight"], call["bias"], call["groups"]
    inputs, kernel = labels[x], labels[weight]
    for spatial in [*inputs[2:], *kernel[2:], inputs[0]]:
        labels.pin(spatial, "it lies along the images or pixels of a convolution")
    into, out = (kernel[0], kernel[1]) if call["transposed"] else (kernel[1], kernel[0])
    if groups == 1:
        labels.join(inputs[1], into, INPUT)
    else:
        out = _grouped(call, inputs[1], into, out, groups)
    if bias is not None:
        labels.join(out, labels[bias][0], FIXED_SIZE)
    return [None, out, *[None] * (x.dim() - 2)]


def _grouped(call: Call, inputs: Atoms | None, into: Atoms | None, out: Atoms | None, groups: int) -> Atoms | None:
    """Whole groups of a convolution go: their inputs, their filters, their outputs."""
    labels = call.labels
    if call["transposed"]:
        if out is not None:
            labels.pin(out, "it is made by a grouped transposed convolution")
        into = labels.join(inputs, into, INPUT)
        out = into if out is None and into is not None and len(into) == call.out.shape[1] else None
        if out is None:
            labels.pin(into, "it is read by a grouped transposed convolution")
        return out
    labels.pin(into, "it lies inside the groups of a convolution")
    if inputs is None or out is None:
        labels.pin(inputs if out is None else out, INPUT)
        return out
    first = inputs.reshape(groups, -1)[:, :1]
    labels.join(inputs.reshape(groups, -1), np.broadcast_to(first, (groups, len(inputs) // groups)), "")
    labels.join(out.reshape(groups, -1), np.broadcast_to(first, (groups, len(out) // groups)), "")
    return out


def _product(call: Call, a: Tensor, b: Tensor) -> Dims:
    """(..., n, k) x (..., k, m). Between two activations no channel may be summed over: nothing zeroes what is dropped of them."""
    labels = call.labels
    left, right = labels[a], labels[b]
    summed = labels.join(left[-1], right[-2 if b.dim() > 1 else 0], INPUT)
    if not labels.is_weight(a) and not labels.is_weight(b):
        labels.pin(summed, "it is summed over in a product of two activations")
    batch = [labels.join(p, q, why_fixed(call)) for p, q in zip(left[:-2], right[:-2], strict=False)]
    return [*batch, *left[-2:-1], *right[-1:]] if b.dim() > 1 else [*batch, *left[-2:-1]]


@rule("aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.matmul")
def _multiply(call: Call) -> Dims:
    return _product(call, *call.tensors)


@rule("aten.addmm", "aten.baddbmm")
def _add_multiply(call: Call) -> Dims:
    a, b = (call["mat1"], call["mat2"]) if call.name == "aten.addmm" else (call["batch1"], call["batch2"])
    dims, added = _product(call, a, b), call["self"]
    for back, atoms in enumerate(reversed(call.labels[added]), start=1):
        if added.shape[-back] == call.out.shape[-back] and call.out.shape[-back] > 1:
            dims[-back] = call.labels.join(dims[-back], atoms, FIXED_SIZE)
    return dims


@rule("aten.linear")
def _linear(call: Call) -> Dims:
    labels, x, weight, bias = call.labels, call["input"], call["weight"], call["bias"]
    labels.join(labels[x][-1], labels[weight][1], INPUT)
    out = labels[weight][0]
    if bias is not None:
        out = labels.join(out, labels[bias][0], FIXED_SIZE)
    return [*labels[x][:-1], out]


@rule(
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
)
def _attention(call: Call) -> Dims:
    """Softmax over the keys, for each head (N, heads, L, head size): heads may go, what scores are summed over may not."""
    labels = call.labels
    q, k, v = (labels[call[name]] for name in ("query", "key", "value"))
    for inner in (q[-1], k[-1], q[-2], k[-2], v[-2]):
        labels.pin(inner, "it lies inside the heads of an attention")
    heads = [labels.join(labels.join(a, b, FIXED_SIZE), c, FIXED_SIZE) for a, b, c in zip(q[:-2], k[:-2], v[:-2], strict=True)]
    return [*heads, None, v[-1]]
