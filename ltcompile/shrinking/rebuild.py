"""Build the networks that a ticket speaks of."""

from __future__ import annotations

import torch
from torch import nn

from ltcompile.core.ticket import Ticket
from ltcompile.errors import LtcompileError, StaleTicket
from ltcompile.graph import cut
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
    torch.manual_seed(ticket.initial_seed)
    try:
        return build_model(ticket.model["name"], **ticket.model["arguments"]).eval()
    except LtcompileError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise StaleTicket(f"the ticket's network cannot be built: {error}") from error


def small_network(ticket: Ticket, dense: nn.Module) -> nn.Module:
    """The ticket's network with its weights, in eval mode. Raises StaleTicket where they do not fit."""
    try:
        small = cut(dense, ticket.plan)
        small.load_state_dict(dict(ticket.weights))
    except (LtcompileError, RuntimeError) as error:
        raise StaleTicket(f"the ticket does not fit {ticket.model['name']!r}: {error}") from error
    return small.eval()
