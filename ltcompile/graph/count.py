"""How large a network is: parameters and multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ltcompile.graph.probe import Example, Inputs, Probes, on_probe, run
from ltcompile.modules import unwrap


@dataclass(frozen=True)
class Size:
    """Parameters, and multiply-accumulates (MACs) of convolutions and matrix products for one image."""

    params: int
    macs: int


def size(model: nn.Module, example: Example) -> Size:
    """The size of `model` on the first image of `example` (N, C, H, W), or of each of several inputs. One MAC is two counted flops.

    Raises:
        BadModel: the network does not run on `example`.
    """
    model = unwrap(model)
    first = tuple(x[:1] for x in example) if isinstance(example, tuple) else example[:1]
    flops = on_probe(model, first, _flops)  # its attention is made of products that the counter knows
    return Size(sum(p.numel() for p in model.parameters()), flops // 2)


def _flops(probe: Probes, inputs: Inputs) -> int:
    counter = FlopCounterMode(display=False)
    run(probe().requires_grad_(False), inputs, counter)  # its hooks stumble over views of parameters that want gradients
    return counter.get_total_flops()
