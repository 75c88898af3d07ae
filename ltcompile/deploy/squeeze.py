"""The structure in zeros of any origin, ready for deployment."""

from __future__ import annotations

import torch
from torch import nn

from ltcompile.core.streams import seeded
from ltcompile.deploy.equality import check_rewritten
from ltcompile.graph import Eliminated, eliminate_dead_channels, trace
from ltcompile.graph._copy import copied
from ltcompile.graph.baked import bake_
from ltcompile.graph.inputs import Example
from ltcompile.graph.wrappers import unwrap


@torch.no_grad()
@seeded(0)
def squeezed(model: nn.Module, example: Example) -> Eliminated:
    """`model` as `lt.squeeze` leaves it, and the plan of what went: the weights with the plan are what all commands take.

    Raises InvalidModel, InvalidSetting as `lt.squeeze`. Disagreement: an output changes.
    """
    network = bake_(copied(unwrap(model))).eval()
    found = eliminate_dead_channels(network, trace(network, example), example)
    check_rewritten("the network without its empty channels and the masked one", found.module, network, example)
    return found
