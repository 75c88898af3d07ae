"""`Pruned`: a small network and what its deployment needs, whatever found it: a ticket, a search in one's own loop, or one's own cut."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ltcompile.core.task import MetricValue
from ltcompile.core.ticket import Ticket
from ltcompile.errors import InvalidSetting
from ltcompile.graph.inputs import Example
from ltcompile.graph.wrappers import unwrap
from ltcompile.pruned.compaction import compact
from ltcompile.pruned.pruned import Pruned, Result
from ltcompile.pruned.ticket import check_ticket_fits, dense_network, named_network, of_ticket

__all__ = [
    "MetricValue",
    "Pruned",
    "Result",
    "Source",
    "check_ticket_fits",
    "compact",
    "dense_network",
    "named_network",
    "network_and_example",
    "of_ticket",
    "pruned_of",
]
Source = Pruned | Ticket | Result | str | Path


def pruned_of(source: Source, model: str | None = None) -> Pruned:
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


def network_and_example(model: nn.Module | Source, example: Example | None, *, dense: bool = False) -> tuple[nn.Module, Example]:
    """A network of one's own with its `example`; or the small network of a source, `dense` the one that it was cut from, and by default its example.

    Raises InvalidSetting where a network comes without an example, and as `pruned_of`.
    """
    if not isinstance(model, nn.Module):
        pruned = pruned_of(model)
        network = pruned.dense or pruned.small if dense else compact(pruned).small
        return network, pruned.example if example is None else example
    if example is None:
        raise InvalidSetting(
            "example= must be inputs of the network: a tensor (N, ...), a tuple of arguments or a dict of keyword arguments"
        )
    return unwrap(model), example
