"""A network without what its pruning left over: dead channels are eliminated, and layers of low rank become two smaller ones each."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ltcompile.errors import InvalidPlan, InvalidSetting, TicketMismatch
from ltcompile.graph import Eliminated, eliminate_dead_channels
from ltcompile.graph.factorise import Factorised, factorise
from ltcompile.pruned.pruned import Pruned


def compact(pruned: Pruned) -> Pruned:
    """`pruned` with a small network that computes the same, as small as its weights allow. Raises as the two functions below."""
    if pruned.mask is not None:
        found = without_dead_channels(pruned)
        pruned = replace(pruned, small=found.module, plan=found.plan)
    return replace(pruned, small=in_two(pruned).module) if has_low_rank(pruned.method) else pruned


def without_dead_channels(pruned: Pruned) -> Eliminated:
    """The small network without the channels that the mask's zeros leave dead.

    Raises:
        InvalidSetting: there is no plan, or the example is not one tensor. TicketMismatch: the plan's groups are of another network.
    """
    if pruned.plan is None or not isinstance(pruned.example, Tensor):
        raise InvalidSetting("a mask needs a plan, whose groups say which channels belong together, and one tensor as the example")
    try:
        return eliminate_dead_channels(pruned.small, pruned.plan.groups, pruned.example)
    except InvalidPlan as error:
        raise TicketMismatch(f"the ticket's groups are not those of its network: {error}; search again") from error


def has_low_rank(method: str) -> bool:
    """Whether `method` prunes weights as coefficients of a basis: then some have a low rank."""
    return method.startswith("basis")


def in_two(pruned: Pruned) -> Factorised:
    """The small network with layers of low rank in two.

    Raises:
        InvalidSetting: the example is not one tensor. Disagreement: the network would answer otherwise.
    """
    if not isinstance(pruned.example, Tensor):
        raise InvalidSetting("layers of low rank are split in networks of one input; pass one tensor as the example")
    images = torch.randn(2, *pruned.example.shape[1:], generator=torch.Generator().manual_seed(0))
    return factorise(pruned.small, images)
