"""Build the networks that a ticket speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ltcompile.core.plan import PruningPlan
from ltcompile.core.streams import seeded, stream
from ltcompile.core.ticket import Ticket
from ltcompile.errors import BadPlan, LtcompileError, StaleTicket
from ltcompile.graph import Emptied, cut, emptied
from ltcompile.graph.factorise import Factorised, factorise
from ltcompile.models import build_model, is_own_code


def check_ticket_fits(ticket: Ticket, model: str | None = None, classes: int | None = None) -> None:
    """Raises StaleTicket where the ticket is of another model, needs code that was not named, or has other classes."""
    name, there = ticket.model["name"], len(ticket.data["class_names"])
    if model is not None and model != name:
        raise StaleTicket(f"the ticket was found for {name!r}, not for {model!r}; leave --model out, or search again")
    if is_own_code(name) and model is None:
        raise StaleTicket(f"the ticket needs your own code {name!r}; to run it, say so with --model {name}")
    if classes is not None and classes != there:
        raise StaleTicket(
            f"the ticket has {there} classes, this data has {classes}; use the ticket's data, {ticket.data['name']}, or search again"
        )


def dense_network(ticket: Ticket) -> nn.Module:
    """The network that the ticket was cut from, with its first weights. Raises StaleTicket where it cannot be built."""
    return named_network(ticket.model, ticket.initial_seed)


def named_network(model: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The network that a file names, fresh from `seed`, in eval mode. Raises StaleTicket where it cannot be built here."""
    try:
        _check_room(model)
        with seeded(stream("first weights", seed)):
            return build_model(model["name"], **model["arguments"]).eval()
    except LtcompileError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise StaleTicket(f"the dense network {model['name']!r} cannot be built: {_line(error)}; search again") from error


def _check_room(model: Mapping[str, Any]) -> None:
    """Raises StaleTicket where a few bytes of a file name a network that would fill the memory."""
    free = _free_bytes()
    if free is None or is_own_code(model["name"]):
        return
    try:
        with torch.device("meta"):
            network = build_model(model["name"], **model["arguments"])
    except (RuntimeError, TypeError, ValueError):  # some compute with tensors while they are built
        return
    needed = sum(value.nbytes for value in (*network.parameters(), *network.buffers()))
    if needed > free:
        raise StaleTicket(
            f"the dense network {model['name']!r} takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free here; "
            "use a machine with more, if you trust this file"
        )


def _free_bytes() -> int | None:
    """The memory that the system could still give, where it tells."""
    try:
        told = Path("/proc/meminfo").read_text()
        return 1024 * next(int(line.split()[1]) for line in told.splitlines() if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def ticket_network(ticket: Ticket, dense: nn.Module) -> nn.Module:
    """The network whose weights the ticket holds, in eval mode: the cut one, or with a mask the whole one with zeros.

    Raises StaleTicket where they do not fit, or leave nothing that runs.
    """
    try:
        network = cut(dense, ticket.plan)
        network.load_state_dict(dict(ticket.weights))
        with torch.no_grad():
            logits = network.eval()(torch.zeros(1, *ticket.data["shape"]))
    except Exception as error:  # layers whose widths do not meet raise anything
        raise StaleTicket(f"the ticket does not fit {ticket.model['name']!r}: {_line(error)}; search again") from error
    if tuple(logits.shape) != (1, len(ticket.data["class_names"])):
        raise StaleTicket(f"the ticket's network gives {tuple(logits.shape)[1:]}, not a number for each class; search again")
    return network


def without_emptied(ticket: Ticket, masked: nn.Module) -> Emptied:
    """`masked`, the network of a ticket with a mask, without the channels that zeros emptied. Raises StaleTicket where its plan does not fit."""
    try:
        return emptied(masked, ticket.plan.groups, torch.zeros(1, *ticket.data["shape"]))
    except BadPlan as error:
        raise StaleTicket(f"the ticket's groups are not those of {ticket.model['name']!r}: {_line(error)}; search again") from error


def small_network(ticket: Ticket, dense: nn.Module) -> nn.Module:
    """The ticket's network with its weights, in eval mode, without what a mask emptied, or with layers of low rank in two.

    Raises StaleTicket as `ticket_network` does.
    """
    return small_with_plan(ticket, dense)[0]


def small_with_plan(ticket: Ticket, dense: nn.Module) -> tuple[nn.Module, PruningPlan]:
    """The same, and the plan that leaves it of the dense network."""
    network = ticket_network(ticket, dense)
    if ticket.mask is not None:
        found = without_emptied(ticket, network)
        return found.module, found.plan
    return factorised(ticket, network).module if in_a_basis(ticket) else network, ticket.plan


def in_a_basis(ticket: Ticket) -> bool:
    """Whether the ticket's weights were pruned as coefficients of a basis: then some have a low rank."""
    return str(ticket.config.get("method", "")).startswith("basis")


def factorised(ticket: Ticket, network: nn.Module) -> Factorised:
    """`network` of a ticket with layers of low rank in two. Raises Disagreement where that changes its answers."""
    return factorise(network, torch.randn(2, *ticket.data["shape"], generator=torch.Generator().manual_seed(0)))


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
