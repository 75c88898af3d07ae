"""Build the networks that a ticket describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ltcompile.core.streams import seeded, stream
from ltcompile.core.task import MetricValue
from ltcompile.core.ticket import CLASSIFICATION, Ticket
from ltcompile.errors import LtcompileError, TicketMismatch
from ltcompile.graph import cut
from ltcompile.models import build_model, is_own_code
from ltcompile.pruned.pruned import Pruned

PROBES = 16


def check_ticket_fits(ticket: Ticket, model: str | None = None) -> None:
    """Raises TicketMismatch where the ticket is of another model, or needs code that was not named."""
    name = ticket.model["name"]
    if model is not None and model != name:
        raise TicketMismatch(f"the ticket was found for {name!r}, not for {model!r}; leave model= out, or search again")
    if is_own_code(name) and model is None:
        raise TicketMismatch(f"the ticket needs your own code {name!r}; to run it, say so with model={name}")


def dense_network(ticket: Ticket) -> nn.Module:
    """The network that the ticket was cut from, with its first weights. Raises TicketMismatch where it cannot be built."""
    return named_network(ticket.model, ticket.initial_seed)


def named_network(model: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The network that a file names, fresh from `seed`, in eval mode. Raises TicketMismatch where it cannot be built here."""
    try:
        _check_free_memory(model)
        with seeded(stream("first weights", seed)):
            return build_model(model["name"], **model["arguments"]).eval()
    except LtcompileError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise TicketMismatch(f"the dense network {model['name']!r} cannot be built: {_line(error)}; search again") from error


def _check_free_memory(model: Mapping[str, Any]) -> None:
    """Raises TicketMismatch where a few bytes of a file name a network that would fill the memory."""
    free = free_memory_bytes()
    if free is None or is_own_code(model["name"]):
        return
    try:
        with torch.device("meta"):
            network = build_model(model["name"], **model["arguments"])
    except (RuntimeError, TypeError, ValueError):  # some compute with tensors while they are built
        return
    needed = sum(value.nbytes for value in (*network.parameters(), *network.buffers()))
    if needed > free:
        raise TicketMismatch(
            f"the dense network {model['name']!r} takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free here; "
            "use a machine with more, if you trust this file"
        )


def free_memory_bytes() -> int | None:
    """The memory in bytes that the system can still give; None where it is unknown."""
    try:
        text = Path("/proc/meminfo").read_text()
        return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def ticket_network(ticket: Ticket, dense: nn.Module) -> nn.Module:
    """The network whose weights the ticket holds, in eval mode: the cut one, or with a mask the full one with zeros.

    Raises TicketMismatch where they do not fit, or leave nothing that runs.
    """
    try:
        network = cut(dense, ticket.plan)
        network.load_state_dict(dict(ticket.weights))
        with torch.no_grad():
            found = network.eval()(torch.zeros(1, *ticket.data["shape"]))
    except Exception as error:  # layers whose widths do not meet raise anything
        raise TicketMismatch(f"the ticket does not fit {ticket.model['name']!r}: {_line(error)}; search again") from error
    if ticket.task == CLASSIFICATION and found.shape != (1, len(ticket.data["class_names"])):
        raise TicketMismatch(f"the ticket's network gives {tuple(found.shape)[1:]}, not a number for each class; search again")
    return network


def of_ticket(ticket: Ticket, model: str | None = None) -> Pruned:
    """The ticket as a `Pruned`: its network with its weights, or with a mask the full one with zeros. Raises TicketMismatch."""
    check_ticket_fits(ticket, model)
    dense = dense_network(ticket)
    row, data = ticket.row, ticket.data
    metric = MetricValue(ticket.metric, row.val_score, "validation")
    if row.test_score is not None:
        metric = MetricValue(ticket.metric, row.test_score, "test")
    return Pruned(
        ticket_network(ticket, dense),
        torch.randn(PROBES, *data["shape"], generator=torch.Generator().manual_seed(0)),  # about as normalised data looks
        dense,
        ticket.plan,
        ticket.mask,
        {
            "task": ticket.task,
            "data": str(data["name"]),
            "class_names": json.dumps(list(data["class_names"])),
            "mean": json.dumps(list(data["mean"])),
            "std": json.dumps(list(data["std"])),
            "interpolation": str(data.get("interpolation", "bilinear")),  # tickets before it knew no other
            "input": "pixels / 255, minus mean, divided by std; NCHW, RGB or grey",
        },
        metric,
        ("images",),
        ("logits",) if ticket.task == CLASSIFICATION else None,
        str(ticket.config.get("method", "")),
        {"ticket_checksum": ticket.checksum, "model": json.dumps(dict(ticket.model))},
        ticket,
    )


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
