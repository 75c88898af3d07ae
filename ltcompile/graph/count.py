"""How large a network is: parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ltcompile.core.streams import seeded
from ltcompile.graph.inputs import Arguments, Example
from ltcompile.graph.probe import Probes, on_probe, run
from ltcompile.graph.wrappers import unwrap


@dataclass(frozen=True)
class Size:
    """Parameters, and multiply-accumulates (MACs) of convolutions and matrix products for one image."""

    params: int
    macs: int


@seeded(0)
def size(model: nn.Module, example: Example) -> Size:
    """The size of `model` on the first item of `example`, a batch (N, ...) or several inputs. One MAC is two counted flops.

    Raises:
        InvalidModel: the network does not run on `example`. InvalidSetting: it is not an example; see `Arguments`.
    """
    model = unwrap(model)
    flops = on_probe(model, Arguments.of(example).first(), _flops)  # its attention is made of products that the counter supports
    return Size(sum(p.numel() for p in model.parameters()), flops // 2)


def _flops(probe: Probes, inputs: Arguments) -> int:
    counter = flop_counter()
    run(probe().requires_grad_(False), inputs, counter)  # its hooks stumble over views of parameters that want gradients
    return counter.get_total_flops()


def flop_counter() -> FlopCounterMode:
    """torch's counter, with what it leaves out: bilinear forms."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten._trilinear: _bilinear})


def _bilinear(a: Sequence[int], weight: Sequence[int], b: Sequence[int], *args: Any, out_shape: Sequence[int], **kwargs: Any) -> int:
    """y[n, o] = sum over (i, j) of a[n, i] * w[o, i, j] * b[n, j], from shapes."""
    return 2 * a[0] * weight[0] * weight[1] * weight[2]
