"""What looks at all of a dimension at once, and tensors made from nothing."""

from __future__ import annotations

from torch import Tensor

from ltcompile.graph._ints import attribute_of, widths_of
from ltcompile.graph._labels import Atoms, Dims, Labels
from ltcompile.graph.rules._call import Call, aten, rule, tensors_in
from ltcompile.graph.rules.pointwise import broadcast


def _reducing(call: Call) -> tuple[Dims, ...]:
    """A sum, mean, maximum or the like: dimensions that are looked at must stay, unless zeros do not count."""
    x = tensors_in(call.values.values())[0]
    dims = list(call.labels[x])
    named = call.values.get("dim")
    at = (
        range(x.dim())
        if named is None or named == []
        else [int(d) % x.dim() for d in (named if isinstance(named, (list, tuple)) else [named])]
    )
    for i in at:
        if not (_ignores_zeros(call) and call.labels.zero(x)[i]):
            call.labels.pin(dims[i], f"{call.name} looks at all of them at once")
    outputs = tensors_in(call.out)
    if outputs and outputs[0].dim() == x.dim():
        kept: Dims = [None if i in at and outputs[0].shape[i] != x.shape[i] else atoms for i, atoms in enumerate(dims)]
    else:
        kept = [atoms for i, atoms in enumerate(dims) if i not in at]
    return tuple(list(kept) for _ in outputs)


def _ignores_zeros(call: Call) -> bool:
    """Whether zeros count for nothing in the reduction: in a sum or a p-norm."""
    norm = call.name in ("aten.linalg_vector_norm", "aten.norm")
    return call.name == "aten.sum" or (norm and float(call.values.get("ord", call.values.get("p")) or 2) > 0)


rule(
    *aten("""mean sum amax amin max min var std var_mean std_mean argmax argmin any all prod median nanmedian kthvalue mode cummax cummin
  cumprod logcumsumexp logsumexp linalg_vector_norm norm _softmax softmax _log_softmax _safe_softmax cumsum topk sort _linalg_det""")
)(_reducing)


@rule(*aten("mse_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy binary_cross_entropy_with_logits"))
def _loss(call: Call) -> Dims:
    """Point by point, and then a mean or sum of all."""
    if call.out.dim():
        return broadcast(call)
    call.labels.pin_all(call.tensors, f"{call.name} looks at all of them at once")
    return []


@rule(
    *aten("""zeros ones empty full arange linspace rand randn scalar_tensor new_zeros new_ones new_empty new_full randperm 
  empty_strided eye tril_indices triu_indices _local_scalar_dense""")
)
def _made(call: Call) -> Dims | None:
    """A tensor made from nothing has the channels that its sizes count: those of a tensor, or of an attribute."""
    sizes = call.requests.sizes
    if (
        not isinstance(call.out, Tensor)
        or len(sizes) != call.out.dim()
        or any(int(s) != n for s, n in zip(sizes, call.out.shape, strict=True))
    ):
        return None
    return [_counted(call.labels, size) for size in sizes]


def _counted(labels: Labels, size: int) -> Atoms | None:
    widths, source = widths_of(size), attribute_of(size)
    if int(size) < 2 or (source is None and not widths):
        return None
    if len(widths) == 1 and len(widths[0]) == int(size):
        return widths[0]
    atoms = labels.fresh(int(size))
    if source is not None:
        labels.follow(source, atoms)
    else:
        labels.tie(*widths, atoms)
    return atoms
