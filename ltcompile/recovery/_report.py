"""What a repair reports, and which of its networks it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn

from ltcompile.graph._copy import copied
from ltcompile.graph.running_statistics import take_statistics
from ltcompile.graph.wrappers import in_eval_mode
from ltcompile.recovery._inputs import Chunk, compared, length

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class LayerRepair:
    """What the repair of one layer found.

    Args:
        before, after: root of the mean square error over that of the dense network, on held-out inputs, where the layer is compared.
        ridge: of the solution; None where the weights are as they were.
        reason: why the layer is left alone, or "".
    """

    before: float
    after: float
    ridge: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class RepairReport:
    """What `repair` did: by weight name, the errors of its layer; and those of the network's outputs, all on held-out inputs.

    `as_cut`, `recalibrated` and `repaired` are relative errors of the outputs: of the small network, with batch norm's statistics taken
    again, and as it is returned. `agreement` has the same keys: the share of held-out inputs whose largest output is the dense
    network's, where the outputs are one tensor (N, classes).
    """

    layers: Mapping[str, LayerRepair]
    as_cut: float
    recalibrated: float
    repaired: float
    inputs: int
    agreement: Mapping[str, float] = field(default_factory=dict)


def best_of(
    source: Module,
    repaired: Module,
    chunks: list[Chunk],
    on_report: Callable[[RepairReport], None] | None,
    layers: Mapping[str, LayerRepair],
) -> Module:
    """`repaired`, or where batch norm's statistics alone come nearer to the dense network's outputs on held-out inputs, the network with those."""
    networks = {"as_cut": source, "recalibrated": source, "repaired": repaired}
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None for m in source.modules()):
        networks["recalibrated"] = copied(source)
        with in_eval_mode(networks["recalibrated"]):
            take_statistics(networks["recalibrated"], (chunk.inputs for chunk in chunks if chunk.expected is not None))
    judged = {name: compared(network, [c for c in chunks if c.held and c.expected is not None]) for name, network in networks.items()}
    best = min(reversed(judged), key=lambda name: judged[name][0])
    judged["repaired"] = judged[best]
    errors = {name: error for name, (error, _) in judged.items()}
    if on_report is not None:
        agreement = {name: share for name, (_, share) in judged.items() if share is not None}
        on_report(RepairReport(layers, **errors, inputs=sum(length(c.inputs) for c in chunks), agreement=agreement))
    return networks[best]
