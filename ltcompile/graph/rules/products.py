"""Convolutions, matrix products and attention."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ltcompile.graph._labels import INSIDE_HEADS, Atoms, Dims, Labels
from ltcompile.graph.rules._call import FIXED_SIZE, Call, rule, why_fixed


@rule("aten.convolution")
def _convolution(call: Call) -> Dims:
    labels, x, weight, bias, groups = call.labels, call["input"], call["weight"], call["bias"], call["groups"]
    inputs, kernel = labels[x], labels[weight]
    for spatial in [*inputs[2:], *kernel[2:], inputs[0]]:
        labels.pin(spatial, "it lies along the images or pixels of a convolution")
    into, out = (kernel[0], kernel[1]) if call["transposed"] else (kernel[1], kernel[0])
    if groups == 1:
        labels.meet(x, inputs[1], weight, into)
        _sum_over(labels, inputs[1], labels.zero(x)[1] or labels.zero(weight)[0 if call["transposed"] else 1])
    else:
        out = _grouped(call, inputs[1], into, out, groups)
    if bias is not None:
        labels.join(out, labels[bias][0], FIXED_SIZE)
    made = labels.zero(weight)[1 if call["transposed"] and groups == 1 else 0] and (bias is None or labels.zero(bias)[0])
    call.zero = [at == 1 and made for at in range(x.dim())]
    return [None, out, *[None] * (x.dim() - 2)]


def _grouped(call: Call, inputs: Atoms | None, into: Atoms | None, out: Atoms | None, groups: int) -> Atoms | None:
    """Whole groups of a convolution go: their inputs, their filters, their outputs."""
    labels = call.labels
    if call["transposed"]:
        if out is not None:
            labels.pin(out, "it is made by a grouped transposed convolution")
        into = labels.meet(call["input"], inputs, call["weight"], into)
        out = into if out is None and into is not None and len(into) == call.out.shape[1] else None
        if out is None:
            labels.pin(into, "it is read by a grouped transposed convolution")
        return out
    labels.pin(into, "it lies inside the groups of a convolution")
    if inputs is None or out is None:
        labels.meet(call["input"], inputs, call["weight"], out)
        return out
    first = inputs.reshape(groups, -1)[:, :1]
    labels.join(inputs.reshape(groups, -1), np.broadcast_to(first, (groups, len(inputs) // groups)), "")
    labels.join(out.reshape(groups, -1), np.broadcast_to(first, (groups, len(out) // groups)), "")
    return out


def _sum_over(labels: Labels, atoms: Atoms | None, zero: bool) -> None:
    """A product sums over these channels: masked ones must be zero in one of its factors."""
    if not zero:
        labels.pin(atoms, "it is summed over in a product of which no factor is zero for a masked channel")


def _product(call: Call, a: Tensor, b: Tensor) -> Dims:
    """(..., n, k) x (..., k, m)."""
    labels = call.labels
    left, right, zero_left, zero_right = labels[a], labels[b], labels.zero(a), labels.zero(b)
    rows = -2 if b.dim() > 1 else 0
    _sum_over(labels, labels.meet(a, left[-1], b, right[rows]), zero_left[-1] or zero_right[rows])
    batch = [labels.join(p, q, why_fixed(call)) for p, q in zip(left[:-2], right[:-2], strict=False)]
    call.zero = [p or q for p, q in zip(zero_left[:-2], zero_right[:-2], strict=False)] + zero_left[-2:-1]
    if b.dim() == 1:
        return [*batch, *left[-2:-1]]
    call.zero += zero_right[-1:]
    return [*batch, *left[-2:-1], *right[-1:]]


@rule("aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.matmul")
def _multiply(call: Call) -> Dims:
    return _product(call, *call.tensors)


@rule("aten.addmm", "aten.baddbmm")
def _add_multiply(call: Call) -> Dims:
    a, b = (call["mat1"], call["mat2"]) if call.name == "aten.addmm" else (call["batch1"], call["batch2"])
    dims, added, zero = _product(call, a, b), call["self"], call.zero or []
    for back, atoms in enumerate(reversed(call.labels[added]), start=1):
        if added.shape[-back] == call.out.shape[-back] and call.out.shape[-back] > 1:
            dims[-back] = call.labels.join(dims[-back], atoms, FIXED_SIZE)
    call.zero = [
        z and back <= added.dim() and call.labels.zero(added)[-back] for back, z in zip(range(len(zero), 0, -1), zero, strict=True)
    ]
    return dims


@rule("aten.linear")
def _linear(call: Call) -> Dims:
    labels, x, weight, bias = call.labels, call["input"], call["weight"], call["bias"]
    _sum_over(labels, labels.meet(x, labels[x][-1], weight, labels[weight][1]), labels.zero(x)[-1] or labels.zero(weight)[1])
    out = labels[weight][0]
    if bias is not None:
        out = labels.join(out, labels[bias][0], FIXED_SIZE)
    call.zero = [z and bias is None for z in labels.zero(x)[:-1]] + [labels.zero(weight)[0] and (bias is None or labels.zero(bias)[0])]
    return [*labels[x][:-1], out]


@rule(
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
)
def _attention(call: Call) -> Dims:
    """Softmax over the keys, for each head (N, heads, L, head size): heads may go, and parts of queries and keys where the scale is given.

    Without one it is the square root of their size.
    """
    labels = call.labels
    q, k, v = (labels[call[name]] for name in ("query", "key", "value"))
    for inner in (q[-2], k[-2], v[-2], *((q[-1], k[-1]) if call.values.get("scale") is None else ())):
        labels.pin(inner, INSIDE_HEADS)
    if call.values.get("scale") is not None:
        _sum_over(labels, labels.join(q[-1], k[-1], FIXED_SIZE), labels.zero(call["query"])[-1] or labels.zero(call["key"])[-1])
    heads = [labels.join(labels.join(a, b, FIXED_SIZE), c, FIXED_SIZE) for a, b, c in zip(q[:-2], k[:-2], v[:-2], strict=True)]
    zero = labels.zero(call["value"])
    call.zero = [*zero[:-2], False, zero[-1]]
    return [*heads, None, v[-1]]


@rule("aten.bilinear")
def _bilinear(call: Call) -> Dims:
    """(..., i), (..., j) and weights (o, i, j) -> (..., o)."""
    labels, weight, bias = call.labels, call["weight"], call.values.get("bias")
    out, *read = labels[weight]
    for at, (x, atoms) in enumerate(zip((call["input1"], call["input2"]), read, strict=True), start=1):
        _sum_over(labels, labels.meet(x, labels[x][-1], weight, atoms), labels.zero(x)[-1] or labels.zero(weight)[at])
    if bias is not None:
        out = labels.join(out, labels[bias][0], FIXED_SIZE)
    made = labels.zero(weight)[0] and (bias is None or labels.zero(bias)[0])
    call.zero = [*[False] * (call.out.dim() - 1), made]
    lead = [labels.join(a, b, why_fixed(call)) for a, b in zip(labels[call["input1"]][:-1], labels[call["input2"]][:-1], strict=True)]
    return [*lead, out]
