"""Operations that work point by point: what shares a dimension is the same channel."""

from __future__ import annotations

from ltcompile.graph._labels import Atoms, Dims
from ltcompile.graph.rules._call import Call, aten, rule, tensors_in, why_fixed


def broadcast(call: Call) -> Dims:
    """Broadcast: dimensions are aligned from the last; what shares one is the same channel."""
    out = tensors_in(call.out)[0]
    dims: list[Atoms | None] = [None] * out.dim()
    seen = [False] * out.dim()
    for tensor in call.tensors:
        for back, atoms in enumerate(reversed(call.labels[tensor]), start=1):
            at = out.dim() - back
            expanded = atoms is None and tensor.shape[-back] > 1 and tensor.stride(-back) == 0  # to the other's size, by the network's code
            if at < 0 or tensor.shape[-back] != out.shape[at] or out.shape[at] == 1 or expanded:
                continue
            dims[at] = call.labels.join(dims[at], atoms, why_fixed(call)) if seen[at] else atoms
            seen[at] = True
    return dims


# Pointwise operations that not every supported version of torch tags as such.
rule(
    *aten("""clone contiguous _to_copy detach alias lift_fresh zeros_like ones_like empty_like rand_like randn_like full_like copy_ fill_ zero_ 
  bernoulli bernoulli_ rrelu_with_noise masked_fill masked_fill_ hardswish hardswish_ gelu_ mish_ relu6_ threshold_ abs_ floor_divide 
  floor_divide_ rsub where log_sigmoid_forward eq_ ne_ lt_ gt_ le_ ge_ uniform_ normal_ dropout dropout_ leaky_relu leaky_relu_ hardtanh_
  hardsigmoid_ elu_ celu_ selu_ rrelu_ copysign_ heaviside_ true_divide_ gcd_ lcm_""")
)(broadcast)

UNDEFINED = set(
    aten("empty_like dropout dropout_ rand_like randn_like bernoulli bernoulli_ uniform_ normal_ rrelu_with_noise")
)  # or random


@rule("aten.native_dropout")
def _dropout(call: Call) -> tuple[Dims, Dims]:
    dims = call.labels[call["input"]]
    return list(dims), list(dims)


@rule("aten.feature_dropout", "aten.feature_alpha_dropout")
def _feature_dropout(call: Call) -> Dims:
    """Whole channels are dropped, or, by the second, set to another value."""
    if call.name == "aten.feature_dropout":
        call.zero = list(call.labels.zero(call["input"]))
    return list(call.labels[call["input"]])


@rule("aten._prelu_kernel", "aten.prelu")
def _prelu(call: Call) -> Dims:
    """One slope a channel (dimension 1), or one for all."""
    labels, x, slope = call.labels, call["self"], call["weight"]
    dims, call.zero = list(labels[x]), list(labels.zero(x))
    if slope.numel() > 1:
        at = slope.shape.index(slope.numel()) if slope.dim() > 1 else 0
        dims[1] = labels.meet(x, dims[1], slope, labels[slope][at])
    return dims
