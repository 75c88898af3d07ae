"""`Pruned`: a small network and what its deployment needs, whatever found it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.core.streams import seeded
from ltcompile.core.task import Metric, MetricValue
from ltcompile.core.ticket import CLASSIFICATION, Ticket
from ltcompile.errors import InvalidModel, InvalidSetting
from ltcompile.graph import cut
from ltcompile.graph.inputs import Arguments, Example
from ltcompile.graph.wrappers import in_eval_mode, unwrap

if TYPE_CHECKING:
    from ltcompile.core.records import Trained


class Result(Protocol):
    """What a search in one's own loop found, as `lt.Search.result()` gives it."""

    @property
    def small(self) -> nn.Module: ...
    @property
    def dense(self) -> nn.Module: ...
    @property
    def plan(self) -> PruningPlan: ...
    @property
    def example(self) -> Example: ...
    @property
    def metric(self) -> Metric: ...
    @property
    def row(self) -> Trained: ...


@dataclass(frozen=True, eq=False)
class Pruned:
    """A network that is ready for deployment: `small`, inputs that it takes, and where it came from.

    Args:
        small: the pruned network; it stays as it is.
        example: a tensor (N, ...), a tuple of arguments or a dict of keyword arguments, nested as the forward takes them.
        dense: the network that `small` was cut from. With `plan`, the two are proven equal up to the cut.
        plan: which channels of `dense` stay.
        mask: which single weights of `small` stay; channels that it leaves without weights are eliminated.
        preprocessing: texts about the inputs, which travel in the file.
        metric: how good the network is.
        input_names, output_names: names in the file, one for each tensor; by default the parameters of the forward and the keys of the output.
        method: how the weights were found, such as "basis" (some have a low rank) or "biprop" (they differ in sign alone).
        provenance: texts about the origin, which travel in the file.
        ticket: what it was made of, where a search found it: `pruned_of` sets it.

    Raises:
        InvalidModel: `small` is not a network, or does not run on `example`. InvalidSetting: the example is of another kind, or `plan` comes
            without `dense`. InvalidPlan: the plan is of another network.
    """

    small: nn.Module
    example: Example
    dense: nn.Module | None = None
    plan: PruningPlan | None = None
    mask: WeightMask | None = None
    preprocessing: Mapping[str, str] = field(default_factory=dict)
    metric: MetricValue | None = None
    input_names: tuple[str, ...] | None = None
    output_names: tuple[str, ...] | None = None
    method: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)
    ticket: Ticket | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "small", unwrap(self.small))
        inputs = Arguments.of(self.example)
        for texts in (self.preprocessing, self.provenance):
            if not all(isinstance(text, str) for pair in texts.items() for text in pair):
                raise InvalidSetting("preprocessing and provenance map names to texts; write other values as JSON")
        if self.plan is not None and self.dense is None:
            raise InvalidSetting("a plan is for a dense network; pass that as well, dense=...")
        if self.dense is not None:
            object.__setattr__(self, "dense", unwrap(self.dense))
        self._check_runs(inputs)

    @seeded(0)
    def _check_runs(self, inputs: Arguments) -> None:
        tensors = (*self.small.parameters(), *self.small.buffers())
        if any(tensor.is_meta for tensor in tensors):
            raise InvalidModel("the small network is on the meta device and has no values; load its weights first")
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        placed = inputs.map(lambda tensor: tensor.to(device))
        try:
            with in_eval_mode(self.small), torch.no_grad():
                try:
                    self._call(placed.first())
                except Exception:  # rows may belong together, as the nodes of a graph do
                    self._call(placed)
        except Exception as error:  # the user's code may raise anything
            line = " ".join(str(error).split())[:300]
            raise InvalidModel(
                f"the network ({type(self.small).__name__}) does not run on the example {inputs.shapes}: {type(error).__name__}: {line}"
            ) from error

    def _call(self, inputs: Arguments) -> None:
        self.small(*inputs.args, **inputs.kwargs)

    @classmethod
    def of_cut(cls, dense: nn.Module, plan: PruningPlan, example: Example, **rest: Any) -> Pruned:
        """`dense`, with trained weights, cut by `plan`; `rest` are other fields. Raises InvalidPlan where the plan is of another network."""
        return cls(cut(dense, plan).eval(), example, dense, plan, **rest)

    @classmethod
    def of_result(cls, found: Result) -> Pruned:
        """What `lt.Search.result()` gives. Raises InvalidSetting where `found` is something else."""
        if not all(hasattr(found, name) for name in ("small", "dense", "plan", "example", "metric", "row")):
            raise InvalidSetting(f"pruned= takes a Pruned, a ticket, its path or the result of a search, not {type(found).__name__}")
        return cls(found.small, found.example, found.dense, found.plan, metric=MetricValue(found.metric, found.row.val_score, "validation"))

    @property
    def classified(self) -> Mapping[str, Any] | None:
        """The data that its ticket for classification was found on, as `Description.to_json` describes it; None of other networks."""
        return self.ticket.data if self.ticket is not None and self.ticket.task == CLASSIFICATION else None

    @property
    def origin(self) -> dict[str, str]:
        """What files that are made of it name as their origin: the checksum of its ticket, or else of its own weights."""
        ticket = self.provenance.get("ticket_checksum")
        return {"network_checksum": self.checksum} if ticket is None else {"ticket_checksum": ticket}

    @property
    def checksum(self) -> str:
        """SHA-256 over the small network's state dict."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.small.state_dict().items()):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
