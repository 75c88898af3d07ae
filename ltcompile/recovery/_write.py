"""Sites as linear maps of rows, and how a solution goes into their weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ltcompile.errors import InvalidPlan
from ltcompile.recovery._calls import Call, Site
from ltcompile.recovery._solve import assign, matrix


def multiplied(call: Call, x: Tensor) -> Tensor:
    """The product's output for rows (groups, rows, d): (rows, outputs)."""
    found = (x @ matrix(call)).transpose(0, 1).flatten(1)
    bias = call.product.get("bias")
    return found if bias is None else found + bias.double()


def through(site: Site, out: Tensor) -> Tensor:
    """`out` (rows, C) behind the site's norm."""
    if site.norm is None:
        return out
    scale, shift = site.norm.affine()
    return out * scale + shift


@torch.no_grad()
def write(site: Site, call: Call, change: Tensor, shift: Tensor) -> None:
    """Add `change` (G, d, o) and `shift` (C,), which count behind the norm, to the weights before it. Rows of a weight keep their length."""
    given, old = call.product, matrix(call)
    bias = given.get("bias")
    if site.norm is None:
        assign(call, old + change)
        if bias is not None:
            bias.copy_(bias.double() + shift)
        return
    norm, (scale, offset) = site.norm, site.norm.affine()
    wanted = old * scale.unflatten(0, (old.shape[0], 1, -1)) + change  # behind the norm
    before = 0.0 if bias is None else bias.double()
    constant = offset + shift + scale * before
    deviation = (norm.var.double() + norm.eps).sqrt()
    if norm.weight is None or norm.bias is None:
        assign(call, wanted * deviation.view(wanted.shape[0], 1, -1))
        norm.mean.copy_(before - constant * deviation)
        return
    length = old.norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-30)
    length = torch.where(length > 0, length, torch.ones_like(length))  # (G, o)
    assign(call, wanted * length[:, None, :])
    length = length.flatten()
    norm.weight.copy_(deviation / length)
    norm.bias.copy_(constant + (norm.mean.double() - before) / length)


def kept_outputs(theirs: Site, ours: Site, positions: Mapping[str, Mapping[int, Tensor]]) -> Tensor:
    """The outputs of a product of the dense network that the small one has."""
    dim = 1 if theirs.transposed and theirs.groups == 1 else 0
    width = theirs.outputs
    kept = positions.get(theirs.name, {}).get(dim)
    if kept is None:
        kept = torch.arange(width)
    elif not theirs.transposed:
        start = theirs.weight.storage_offset() // max(1, theirs.weight.stride(0))
        kept = kept[(kept >= start) & (kept < start + width)] - start
    if len(kept) != ours.outputs or (len(kept) and int(kept[-1]) >= width):
        raise InvalidPlan(f"{ours.name} has {ours.outputs} outputs in the small network, and the plan leaves {len(kept)}")
    return kept.to(theirs.weight.device)
