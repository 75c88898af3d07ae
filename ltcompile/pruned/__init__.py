"""`Pruned`: a small network and what its deployment needs, whatever found it: a ticket, a search in one's own loop, or one's own cut."""

from __future__ import annotations

from pathlib import Path

from ltcompile.core.ticket import Ticket
from ltcompile.errors import InvalidSetting
from ltcompile.pruned.compaction import compact
from ltcompile.pruned.pruned import MetricValue, Pruned, Result
from ltcompile.pruned.ticket import check_ticket_fits, dense_network, named_network, of_ticket

__all__ = [
    "MetricValue",
    "Pruned",
    "Result",
    "check_ticket_fits",
    "compact",
    "dense_network",
    "named_network",
    "of_ticket",
    "pruned_of",
]


def pruned_of(source: Pruned | Ticket | Result | str | Path, model: str | None = None) -> Pruned:
    """`source` as a `Pruned`: that itself, a ticket or its file, or the result of a `lt.Search`.

    `model` names one's own `package.module:factory` again where a ticket needs it.

    Raises:
        InvalidFile, TicketMismatch: the file is not a ticket, or does not fit its network. InvalidSetting: `source` is something else.
    """
    if isinstance(source, str | Path):
        source = Ticket.load(source)
    if isinstance(source, Ticket):
        return of_ticket(source, model)
    if model is not None:
        raise InvalidSetting("model= names the code of a ticket's network, and a Pruned holds its network; leave model out")
    return source if isinstance(source, Pruned) else Pruned.of_result(source)
